#!lua flags=allow-oom
-- Take the retry queues of one handler that are due longest, to run them, if the caller still owns the partition.
--
-- Also where the server is out of memory (allow-oom): what is handled makes room.
--
-- KEYS  1 lease   2 fence   3 the handler's due set   4 its since set   5 what is taken
--       6 prefix of the handler's queues   7 prefix of session states; the SessionUUID follows in both
-- ARGV  1 lease value (fencing token, worker id)   2 the handler's name as hash fields have it
--       3 how many queues at most   4 how many events of each at most
--       5, 6 the numbers that the last commit may have: the last confirmed one, and the one under way
--       then the sessions to leave out
-- reply 0 fenced off: nothing was done, 2 diverged: the last commit is not here, nothing was done, else
--       { ms until the next queue that was not taken is due, or -1 if there is none,
--         { session, takes, its state or nil, events in the queue, { the first events } } … }
--
-- The keys made of a prefix have its hash tag, so they are in its slot of a cluster. They are read before anything is
-- written: while that slot moves to another server, one of them may be there already, which is an error.
--
-- A queue stays due while it is taken: whoever owns the partition next takes it again. `takes` says how many workers have
-- taken it, this one included, without an end committed: so one that it brings down is seen. The same worker counts
-- once, however often it takes the queue: it may not have got a reply, or have acquired the partition anew.
--
-- Where the last commit is missing, the server has lost it (a failover), and the queues are not as the caller knows them:
-- an event that it has handled may be a head again.
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
local last = tonumber(redis.call('HGET', KEYS[2], 'commit')) or 0
if last ~= tonumber(ARGV[5]) and last ~= tonumber(ARGV[6]) then
    return 2
end
local FIRST_EXCLUDED = 7
local count, items = tonumber(ARGV[3]), tonumber(ARGV[4])
local worker = string.match(ARGV[1], '^%S+ (.*)$')
local excluded = {}
for i = FIRST_EXCLUDED, #ARGV do
    excluded[ARGV[i]] = true
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local reply, counted, gone = { -1 }, {}, {}
-- One more than what may be taken or left out: it says when to look again.
local page = redis.call('ZRANGE', KEYS[3], 0, count + #ARGV - FIRST_EXCLUDED + 1, 'WITHSCORES')
for i = 1, #page, 2 do
    local session, in_ms = page[i], tonumber(page[i + 1]) - now_ms
    if excluded[session] then
        -- The caller has it.
    elseif in_ms > 0 or #reply > count then
        reply[1] = math.max(in_ms, 0)
        break
    else
        local first = redis.call('LRANGE', KEYS[6] .. session, 0, items - 1)
        local waiting = redis.call('LLEN', KEYS[6] .. session)
        if waiting == 0 then
            gone[#gone + 1] = session
        else
            local field = ARGV[2] .. ' ' .. session
            local before = redis.call('HGET', KEYS[5], field)
            local takes, by = string.match(before or '', '^(%d+) (.*)$')
            takes = (tonumber(takes) or 0) + (by == worker and 0 or 1)
            counted[field] = takes .. ' ' .. worker
            reply[#reply + 1] = { session, takes, redis.call('GET', KEYS[7] .. session), waiting, first }
        end
    end
end
for field, value in pairs(counted) do
    redis.call('HSET', KEYS[5], field, value)
end
for _, session in ipairs(gone) do -- somebody has deleted its list
    redis.call('ZREM', KEYS[3], session)
    redis.call('ZREM', KEYS[4], session)
end
if #gone > 0 and reply[1] == -1 then
    reply[1] = 0 -- there may be more behind this page
end
return reply
