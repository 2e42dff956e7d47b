-- Keep a lease that is still mine.
--
-- KEYS  1 lease
-- ARGV  1 lease value (fencing token, worker id)   2 lease life, ms
-- reply 1 kept, 0 lost
if redis.call('GET', KEYS[1]) == ARGV[1] then
    return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
