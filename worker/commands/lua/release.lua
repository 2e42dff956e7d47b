#!lua flags=allow-oom
-- Give back a lease that the caller still holds, and record that its tenure ended well: the next owner has no suspects.
--
-- KEYS  1 lease   2 fence
-- ARGV  1 lease value (fencing token, worker id)
-- reply 1 given back, 0 was no longer mine
--
-- A lease that has lapsed, and that nobody has taken since, is still mine, as for commit.lua.
--
-- Out of memory is no reason to keep a lease: the few bytes written here are there to be had (allow-oom).
local holder = redis.call('GET', KEYS[1])
if holder ~= ARGV[1] then
    local given = redis.call('HMGET', KEYS[2], 'token', 'owner', 'clean')
    local mine = given[1] and given[2] and given[1] .. ' ' .. given[2] == ARGV[1] and given[3] ~= given[1]
    if holder or not mine then
        return 0
    end
end
redis.call('HSET', KEYS[2], 'clean', string.match(ARGV[1], '^%S+'))
redis.call('DEL', KEYS[1])
return 1
