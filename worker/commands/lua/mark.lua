#!lua flags=allow-oom
-- Write marks of handlers that may crash their worker, if the caller still owns the partition.
--
-- Also where the server is out of memory (allow-oom): a suspect does not run before its mark is written, and only what
-- has run can be trimmed. A mark takes some hundred bytes, and there is one for each suspect at most.
--
-- KEYS  1 lease   2 fence   3 marks
-- ARGV  1 lease value (fencing token, worker id)   2 life of the marks, seconds   then field and value of each
-- reply 1 written, 0 fenced off: nothing was done
--
-- A lease that has lapsed, and that nobody has taken since, is still mine, as for commit.lua.
local holder = redis.call('GET', KEYS[1])
if holder ~= ARGV[1] then
    local given = redis.call('HMGET', KEYS[2], 'token', 'owner', 'clean')
    local mine = given[1] and given[2] and given[1] .. ' ' .. given[2] == ARGV[1] and given[3] ~= given[1]
    if holder or not mine then
        return 0
    end
end
redis.call('HSET', KEYS[3], unpack(ARGV, 3))
redis.call('EXPIRE', KEYS[3], ARGV[2])
return 1
