#!lua flags=allow-oom
-- Give a lease back that is still mine, and note that its tenure ended well: whoever takes it next suspects nothing.
--
-- KEYS  1 lease   2 fence
-- ARGV  1 lease value (fencing token, worker id)
-- reply 1 given back, 0 was no longer mine
--
-- Out of memory is no reason to keep a lease: the few bytes written here are there to be had (allow-oom).
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
redis.call('HSET', KEYS[2], 'clean', string.match(ARGV[1], '^%S+'))
return redis.call('DEL', KEYS[1])
