#!lua flags=allow-oom
-- Keep a lease that is still mine. One that has lapsed, and that nobody has taken since, is still mine: after a time in
-- which the server stood still, or was away, its owners go on as if nothing had happened.
--
-- KEYS  1 lease   2 fence
-- ARGV  1 lease value (fencing token, worker id)   2 lease life, ms
-- reply 1 kept, 0 lost
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then
    return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
if holder then
    return 0
end
local last = redis.call('HMGET', KEYS[2], 'token', 'owner', 'clean')
if last[1] and last[2] and last[1] .. ' ' .. last[2] == ARGV[1] and last[3] ~= last[1] then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return 1
end
return 0
