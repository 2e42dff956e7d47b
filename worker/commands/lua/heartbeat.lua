#!lua flags=allow-oom
-- Record the worker's heartbeat, remove workers without one for a lease's life, and return the live ones.
--
-- KEYS  1 workers
-- ARGV  1 worker id   2 lease life, ms
-- reply { the live workers' ids, in how many ms the next of the others' heartbeats lapses or -1 if there is no other }
--
-- Out of memory is no reason to lose the leases: a worker at work frees more than this takes (allow-oom).
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local life_ms = tonumber(ARGV[2])
redis.call('ZADD', KEYS[1], now_ms, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. string.format('%.0f', now_ms - life_ms))
redis.call('PEXPIRE', KEYS[1], life_ms * 10)
local next_lapse_ms = -1
local oldest = redis.call('ZRANGE', KEYS[1], 0, 1, 'WITHSCORES')
for i = 1, #oldest, 2 do
    if oldest[i] ~= ARGV[1] then
        next_lapse_ms = math.max(tonumber(oldest[i + 1]) + life_ms - now_ms, 0)
        break
    end
end
return { redis.call('ZRANGE', KEYS[1], 0, -1), next_lapse_ms }
