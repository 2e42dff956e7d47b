#!lua flags=allow-oom
-- Remove refused requests: they were released. Runs also when the server is out of memory, since it makes room.
--
-- KEYS  1 requests   2 shares   3 ages   4 total   (schemas.keys.RefusedKeys)
-- ARGV  1 … IDs of entries of `requests`
-- reply how many of them were there
--
-- What keep.lua has counted for a request is written in `ages`.
local function padded(digits)
    return string.rep('0', 20 - #digits) .. digits
end

local removed = 0
for _, id in ipairs(ARGV) do
    local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
    if entry then
        local share = entry[2][2]
        local ms, number = string.match(id, '^(%d+)-(%d+)$')
        local prefix = share .. ' ' .. padded(ms) .. '-' .. padded(number) .. ' '
        local found = redis.call('ZRANGEBYLEX', KEYS[3], '[' .. prefix, '(' .. prefix .. ':', 'LIMIT', 0, 1)[1]
        if found then
            local bytes = tonumber(string.match(found, '(%d+)$'))
            redis.call('ZREM', KEYS[3], found)
            redis.call('DECRBY', KEYS[4], bytes)
            if tonumber(redis.call('ZINCRBY', KEYS[2], -bytes, share)) <= 0 then
                redis.call('ZREM', KEYS[2], share)
            end
        end
        redis.call('XDEL', KEYS[1], id)
        removed = removed + 1
    end
end
return removed
