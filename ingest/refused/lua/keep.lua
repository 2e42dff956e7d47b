#!lua
-- Keep refused requests, within a bound on their bytes that client addresses share fairly. Not allow-oom: the memory of
-- a full server belongs to callbacks that are good.
--
-- KEYS  1 requests   2 shares   3 ages   4 total   (schemas.keys.RefusedKeys)
-- ARGV  1 bytes that all may take   2 how long they are kept, ms   3 … share, request, share, request, …
-- reply { kept, pushed out, expired }
--
-- An entry of `requests` has the fields `s`, its share (a client's address, without blanks), and `r`, the request. What
-- is too old goes first. If the bound is reached, the oldest request of the share with the most bytes makes room, which
-- may be the new one's own. So a flood pushes out itself before anything else.
local MAX_BYTES, TTL_MS = tonumber(ARGV[1]), tonumber(ARGV[2])

-- Counted for each request beside its bytes: what the stream and the two sorted sets take.
local OVERHEAD = 256
-- The most requests that expire, and that are pushed out, in one call: a bound on how long the server is busy, where a
-- setting was lowered. What still is too much then leaves no room for new ones; the next calls go on.
local EXPIRE_MAX, PUSH_OUT_MAX = 200, 1000

local total = math.max(tonumber(redis.call('GET', KEYS[4]) or '0'), 0)

-- IDs are padded, so that their order as text is that of their numbers.
local function member(share, id, bytes)
    local ms, number = string.match(id, '^(%d+)-(%d+)$')
    return string.format('%s %s%s-%s%s %d', share, string.rep('0', 20 - #ms), ms, string.rep('0', 20 - #number), number,
        bytes)
end

local function forget(share, bytes)
    total = total - bytes
    local left = tonumber(redis.call('ZINCRBY', KEYS[2], -bytes, share))
    if left <= 0 then
        redis.call('ZREM', KEYS[2], share)
    end
end

-- Remove the oldest request of a share. Where none is known, the share's count is wrong, and goes.
local function push_out(share)
    local oldest = redis.call('ZRANGEBYLEX', KEYS[3], '[' .. share .. ' ', '(' .. share .. '!', 'LIMIT', 0, 1)[1]
    if not oldest then
        forget(share, tonumber(redis.call('ZSCORE', KEYS[2], share) or '0'))
        return
    end
    local ms, number, bytes = string.match(oldest, ' 0*(%d+)%-0*(%d+) (%d+)$')
    redis.call('ZREM', KEYS[3], oldest)
    redis.call('XDEL', KEYS[1], ms .. '-' .. number)
    forget(share, tonumber(bytes))
end

local time = redis.call('TIME')
local cutoff_ms = time[1] * 1000 + math.floor(time[2] / 1000) - TTL_MS
local expired = 0
local old = redis.call('XRANGE', KEYS[1], '-', string.format('(%.0f-0', math.max(cutoff_ms, 0)), 'COUNT', EXPIRE_MAX)
for _, entry in ipairs(old) do
    local share, bytes = entry[2][2], #(entry[2][4] or '') + OVERHEAD
    redis.call('XDEL', KEYS[1], entry[1])
    redis.call('ZREM', KEYS[3], member(share, entry[1], bytes))
    forget(share, bytes)
    expired = expired + 1
end

local kept, pushed_out = 0, 0
for at = 3, #ARGV, 2 do
    local share, request = ARGV[at], ARGV[at + 1]
    local bytes = #request + OVERHEAD
    while total + bytes > MAX_BYTES and pushed_out < PUSH_OUT_MAX do
        local most = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
        if not most[1] then
            break
        end
        local own = tonumber(redis.call('ZSCORE', KEYS[2], share) or '0')
        push_out(own > 0 and own + bytes >= tonumber(most[2]) and share or most[1])
        pushed_out = pushed_out + 1
    end
    if total + bytes <= MAX_BYTES then
        local id = redis.call('XADD', KEYS[1], '*', 's', share, 'r', request)
        redis.call('ZADD', KEYS[3], 0, member(share, id, bytes))
        redis.call('ZINCRBY', KEYS[2], bytes, share)
        total = total + bytes
        kept = kept + 1
    end
end

redis.call('SET', KEYS[4], string.format('%.0f', math.max(total, 0)))
for _, key in ipairs(KEYS) do
    redis.call('PEXPIRE', key, TTL_MS)
end
return { kept, pushed_out, expired }
