-- The sessions whose due time has come, by the server's clock, the oldest first: of those, what the group has not read
-- yet, since workers were down or are behind, is not silence. So there its clock is the last entry that it has read.
--
-- KEYS  1 sorted set of due times   2 stream of the partition
-- ARGV  1 how many at most   2 group
-- reply the sessions
local function value(list, name)
    for at = 1, #list, 2 do
        if list[at] == name then
            return list[at + 1]
        end
    end
end

local time = redis.call('TIME')
local until_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGE', KEYS[1], '-inf', until_ms, 'BYSCORE', 'LIMIT', 0, ARGV[1])
if #due == 0 or redis.call('EXISTS', KEYS[2]) == 0 then
    return due
end
local last_id = value(redis.call('XINFO', 'STREAM', KEYS[2]), 'last-generated-id')
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
    local read_id = value(group, 'last-delivered-id')
    if value(group, 'name') == ARGV[2] and read_id ~= last_id then
        return redis.call('ZRANGE', KEYS[1], '-inf', string.match(read_id, '^%d+'), 'BYSCORE', 'LIMIT', 0, ARGV[1])
    end
end
return due
