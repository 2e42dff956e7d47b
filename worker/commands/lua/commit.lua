#!lua flags=allow-oom
-- Commit what an owner has done to a partition, if it still owns it. Runs also when the server is out of memory
-- (allow-oom): only committed entries can ever be trimmed.
--
-- KEYS  1 lease   2 fence   3 stream   4 … session states
--       then, if ARGV have a consumer: dead letters   marks
--       then, if retry queues change, what part_retry_ops.lua lists
-- ARGV  1 lease value (fencing token, worker id)   2 commit number: 1, 2, … under a token   3 group
--       4 cursor: everything up to it was read; empty where the last commit, or the acquisition, said the same; with
--         a ? before it where it is to be looked up in the stream
--       5 entries read up to the cursor, or -1 if unknown
--       6 life of a session state, seconds
--       then the value of every session state
--       then, if there are any of them: the consumer, how many entries wait, how many are done, how many dead letters,
--       how many marks are over, how many states have another life; the IDs that wait, the IDs that are done, the dead
--       letters, the fields of those marks, and for each such state its place, from 1, and its life, 0 for ever
--       then, if retry queues change (the consumer is there then as well): what part_retry_ops.lua lists, how many keys
--       that has, and the word `retry-ops`
-- reply 1 committed (or was before: the repeat of a commit whose reply was lost), 0 fenced off: nothing was done,
--       2 diverged: the server lacks what the commit stands on, nothing was done
--
-- Entries are read with XREAD, which leaves no trace, so an owner that lost its lease cannot take any away. What the
-- group knows is made here: the cursor by XGROUP SETID, the entries below it that are not done by XCLAIM FORCE.
-- An entry that was done before anybody committed past it never enters the pending list at all.
--
-- A commit stands on those before it: which entries wait is said once. Where the last one is not there, Redis has lost
-- it (a crash, a failover). Where an entry that waits, or the cursor's, is not in the stream, Redis has lost that: the
-- stream goes on with IDs below such a cursor, and nobody would ever read them. In both cases its owner must begin
-- again from what is there. Checking a cursor is a third of the cost of a small commit, so it is not requested every
-- time.
--
-- A lease that has lapsed, and that nobody has taken since, still fences: no other owner has begun.
local call = redis.call
local holder = call('GET', KEYS[1])
if holder ~= ARGV[1] then
    local given = call('HMGET', KEYS[2], 'token', 'owner', 'clean')
    local mine = given[1] and given[2] and given[1] .. ' ' .. given[2] == ARGV[1] and given[3] ~= given[1]
    if holder or not mine then
        return 0
    end
end
local last = call('HGET', KEYS[2], 'commit')
if last == ARGV[2] then
    return 1
end
if (tonumber(last) or 0) + 1 ~= tonumber(ARGV[2]) then
    return 2
end

-- unpack() takes at most about 8,000 values.
local CHUNK = 1000
local group = ARGV[3]
-- Every key and argument costs the server a fifth of a microsecond: most commits have no more than states.
local last_state, more, queues_change = #KEYS, #ARGV > #KEYS + 3, ARGV[#ARGV] == 'retry-ops'
if queues_change then
    last_state = last_state - ARGV[#ARGV - 1]
end
local dead_letters, marks_key
if more then
    last_state = last_state - 2
    dead_letters, marks_key = KEYS[last_state + 1], KEYS[last_state + 2]
end
local at = last_state + 4
local consumer = ARGV[at]
local waiting, done, dead, marks, others = 0, 0, 0, 0, 0
if more then
    waiting, done = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    dead, marks, others = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
end
local first_waiting = at + 6
local first_done = first_waiting + waiting
local first_dead = first_done + done
local first_mark = first_dead + dead

-- A script is not undone: what may fail is tried before anything is written. The cursor moves when all else is there that
-- must not be passed over: any of the commands may fail where an operator has not granted it.
local group_there = redis.pcall('XPENDING', KEYS[3], group)
if group_there.err then
    return redis.error_reply(group_there.err)
end
if dead > 0 then
    call('XLEN', dead_letters) -- fails where the key is of another type
end
local retries
if queues_change then
    -- include part_retry_ops.lua
    retries = retry_ops(last_state + 2, dead_letters, first_mark + marks + 2 * others)
    retries.check()
end
local cursor = ARGV[4]
if string.byte(cursor) == 63 then -- ?
    cursor = string.sub(cursor, 2)
    if #call('XRANGE', KEYS[3], cursor, cursor) == 0 then
        return 2
    end
end

-- XCLAIM passes over what is not in the stream. As long as nothing else is written, it can be taken back.
local claimed = 0
for i = first_waiting, first_done - 1, CHUNK do
    local ids = { unpack(ARGV, i, math.min(i + CHUNK, first_done) - 1) }
    ids[#ids + 1] = 'FORCE'
    ids[#ids + 1] = 'JUSTID'
    claimed = claimed + #call('XCLAIM', KEYS[3], group, consumer, 0, unpack(ids))
end
if claimed < waiting then
    for i = first_waiting, first_done - 1, CHUNK do
        call('XACK', KEYS[3], group, unpack(ARGV, i, math.min(i + CHUNK, first_done) - 1))
    end
    return 2
end
for i = first_dead, first_mark - 1 do
    call('XADD', dead_letters, '*', 'd', ARGV[i])
end
if retries then
    retries.apply()
end
local lives = {}
local first_life = first_mark + marks
for i = first_life, first_life + 2 * others - 1, 2 do
    lives[tonumber(ARGV[i])] = ARGV[i + 1]
end
for i = 4, last_state do
    local life = lives[i - 3] or ARGV[6]
    if life == '0' then
        call('SET', KEYS[i], ARGV[i + 3])
    else
        call('SET', KEYS[i], ARGV[i + 3], 'EX', life)
    end
end
if cursor ~= '' and ARGV[5] == '-1' then
    call('XGROUP', 'SETID', KEYS[3], group, cursor)
elseif cursor ~= '' then
    call('XGROUP', 'SETID', KEYS[3], group, cursor, 'ENTRIESREAD', ARGV[5])
end
for i = first_done, first_dead - 1, CHUNK do
    call('XACK', KEYS[3], group, unpack(ARGV, i, math.min(i + CHUNK, first_dead) - 1))
end
for i = first_mark, first_mark + marks - 1, CHUNK do
    call('HDEL', marks_key, unpack(ARGV, i, math.min(i + CHUNK, first_mark + marks) - 1))
end
call('HSET', KEYS[2], 'commit', ARGV[2])
return 1
