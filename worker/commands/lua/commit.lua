#!lua flags=allow-oom
-- Commit what an owner has done to a partition, if it still owns it. Runs also when the server is out of memory
-- (allow-oom): only committed entries can ever be trimmed.
--
-- KEYS  1 lease   2 fence   3 stream   4 dead letters   5 marks   6 … session states
--       then, if retry queues change: the counts, what is taken, the jobs; for each handler its due, its parked and its
--       since set; each queue
-- ARGV  1 lease value (fencing token, worker id)   2 commit number: 1, 2, … under a token   3 group
--       4 cursor: everything up to it was read; empty where the last commit, or the acquisition, said the same; with
--         a ? before it where it is to be looked up in the stream
--       5 entries read up to the cursor, or -1 if unknown
--       6 life of a session state, seconds
--       then the value of every session state
--       then, if there are any of them: the consumer, how many entries wait, how many are done, how many dead letters,
--       how many marks are over, how many states have another life; the IDs that wait, the IDs that are done, the dead
--       letters, the fields of those marks, and for each such state its place, from 1, and its life, 0 for ever
--       then, if retry queues change (the consumer is there then as well): how many handlers, their names as hash fields
--       have them, the operations, how many keys they have, and the word `retry-ops`
--       An operation is its name and its arguments (`commands/retry_ops.py` says what each means); H and Q are the
--       handler's and the queue's place, from 1:
--         append H Q session delay item     again H Q session delay item     pop H Q session     park H Q session
--         unpark H Q session letter item    untake H Q session               give up H Q session count
--         delete letter ID    requeue ID callback    write job ID record     delete job ID
--       a delay is in ms; the item of `unpark` is empty where there is none
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
local holder = redis.call('GET', KEYS[1])
if holder ~= ARGV[1] then
    local given = redis.call('HMGET', KEYS[2], 'token', 'owner', 'clean')
    local mine = given[1] and given[2] and given[1] .. ' ' .. given[2] == ARGV[1] and given[3] ~= given[1]
    if holder or not mine then
        return 0
    end
end
local last = redis.call('HGET', KEYS[2], 'commit')
if last == ARGV[2] then
    return 1
end
if (tonumber(last) or 0) + 1 ~= tonumber(ARGV[2]) then
    return 2
end

-- unpack() takes at most about 8,000 values.
local CHUNK = 1000
local group = ARGV[3]
-- Every argument costs the server a fifth of a microsecond: most commits have no more than states.
local retry_keys = 0
if ARGV[#ARGV] == 'retry-ops' then
    retry_keys = tonumber(ARGV[#ARGV - 1])
end
local last_state = #KEYS - retry_keys
local at = 7 + last_state - 5
local consumer = ARGV[at]
local waiting, done, dead, marks, others = 0, 0, 0, 0, 0
if consumer then
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
    redis.call('XLEN', KEYS[4]) -- fails where the key is of another type
end
local apply_retry_ops
if retry_keys > 0 then
    local time = redis.call('TIME')
    local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
    local counts, taken, jobs = KEYS[last_state + 1], KEYS[last_state + 2], KEYS[last_state + 3]

    -- An older release's rights do not have all of these commands; and each of the keys may be of another type.
    for _, command in ipairs({
        { 'RPUSH', counts, '' }, { 'LPUSH', counts, '' }, { 'LSET', counts, 0, '' }, { 'LTRIM', counts, 0, 0 },
        { 'ZADD', counts, 0, '' }, { 'ZREM', counts, '' }, { 'HSET', counts, '', '' }, { 'HDEL', counts, '' },
        { 'XADD', KEYS[3], '*', '', '' }, { 'XDEL', KEYS[4], '0-1' },
    }) do
        if not redis.acl_check_cmd(unpack(command)) then
            return redis.error_reply('NOPERM commits need the command ' .. command[1])
        end
    end
    redis.call('HLEN', taken)
    redis.call('HLEN', jobs)
    redis.call('XLEN', KEYS[4])
    local handlers = {}
    local first_handler = first_mark + marks + 2 * others + 1
    local first_op = first_handler + tonumber(ARGV[first_handler - 1])
    for i = first_handler, first_op - 1 do
        local key = last_state + 4 + 3 * (i - first_handler)
        local found = redis.call('HMGET', counts, 'waiting ' .. ARGV[i], 'parked ' .. ARGV[i])
        handlers[#handlers + 1] = {
            name = ARGV[i], due = KEYS[key], parked = KEYS[key + 1], since = KEYS[key + 2],
            waiting_count = tonumber(found[1]) or 0, parked_count = tonumber(found[2]) or 0,
        }
        redis.call('ZCARD', KEYS[key])
        redis.call('ZCARD', KEYS[key + 1])
        redis.call('ZCARD', KEYS[key + 2])
    end
    local last_handler_key = last_state + 3 + 3 * #handlers
    for i = last_handler_key + 1, #KEYS do
        redis.call('LLEN', KEYS[i])
    end

    -- A queue: { handler, list, session, is it parked }
    local function queue_at(at)
        local handler, session = handlers[tonumber(ARGV[at])], ARGV[at + 2]
        local parked = redis.call('ZSCORE', handler.parked, session)
        return { handler = handler, list = KEYS[last_handler_key + ARGV[at + 1]], session = session, parked = parked }
    end
    local function ms(number)
        return string.format('%.0f', number)
    end
    local function count(queue, waiting)
        local handler = queue.handler
        handler.waiting_count = handler.waiting_count + waiting
        if queue.parked then
            handler.parked_count = handler.parked_count + waiting
        end
    end
    local function remove(queue, count_max)
        local removed = math.min(redis.call('LLEN', queue.list), count_max)
        if removed > 0 then
            redis.call('LTRIM', queue.list, removed, -1)
            count(queue, -removed)
        end
    end
    local function schedule(queue, delay_ms, since_now)
        if queue.parked then
            return
        elseif redis.call('LLEN', queue.list) == 0 then
            redis.call('ZREM', queue.handler.due, queue.session)
            redis.call('ZREM', queue.handler.since, queue.session)
        else
            redis.call('ZADD', queue.handler.due, ms(now_ms + delay_ms), queue.session)
            redis.call('ZADD', queue.handler.since, since_now and 'CH' or 'NX', ms(now_ms), queue.session)
        end
    end
    local function untake(queue)
        redis.call('HDEL', taken, queue.handler.name .. ' ' .. queue.session)
    end
    local function unpark(queue)
        if queue.parked then
            queue.handler.parked_count = queue.handler.parked_count - redis.call('LLEN', queue.list)
            queue.parked = false
            redis.call('ZREM', queue.handler.parked, queue.session)
        end
    end
    local function delete_letter(id)
        local deleted = redis.pcall('XDEL', KEYS[4], id) -- fails where an operator's text is no ID
        return type(deleted) == 'number' and deleted > 0
    end

    -- By name: takes the place of the operation's first argument and returns that behind its last.
    local operations = {
        append = function(at)
            local queue = queue_at(at)
            redis.call('RPUSH', queue.list, ARGV[at + 4])
            count(queue, 1)
            if not redis.call('ZSCORE', queue.handler.due, queue.session) then
                schedule(queue, ARGV[at + 3], false)
            end
            return at + 5
        end,
        again = function(at)
            local queue = queue_at(at)
            if redis.call('LLEN', queue.list) > 0 then
                redis.call('LSET', queue.list, 0, ARGV[at + 4])
            else
                redis.call('RPUSH', queue.list, ARGV[at + 4])
                count(queue, 1)
            end
            untake(queue)
            schedule(queue, ARGV[at + 3], false)
            return at + 5
        end,
        pop = function(at)
            local queue = queue_at(at)
            remove(queue, 1)
            untake(queue)
            schedule(queue, 0, true)
            return at + 3
        end,
        park = function(at)
            local queue = queue_at(at)
            remove(queue, 1)
            untake(queue)
            if not queue.parked then
                queue.handler.parked_count = queue.handler.parked_count + redis.call('LLEN', queue.list)
                redis.call('ZREM', queue.handler.due, queue.session)
                redis.call('ZADD', queue.handler.parked, ms(now_ms), queue.session)
                redis.call('ZADD', queue.handler.since, ms(now_ms), queue.session)
            end
            return at + 3
        end,
        unpark = function(at)
            local queue = queue_at(at)
            delete_letter(ARGV[at + 3])
            unpark(queue)
            if ARGV[at + 4] ~= '' then
                redis.call('LPUSH', queue.list, ARGV[at + 4])
                count(queue, 1)
            end
            schedule(queue, 0, true)
            return at + 5
        end,
        untake = function(at)
            local queue = queue_at(at)
            untake(queue)
            schedule(queue, 0, false)
            return at + 3
        end,
        ['give up'] = function(at)
            local queue = queue_at(at)
            unpark(queue)
            remove(queue, tonumber(ARGV[at + 3]))
            schedule(queue, 0, true)
            return at + 4
        end,
        ['delete letter'] = function(at)
            delete_letter(ARGV[at])
            return at + 1
        end,
        requeue = function(at)
            if delete_letter(ARGV[at]) then
                redis.call('XADD', KEYS[3], '*', 'c', ARGV[at + 1])
            end
            return at + 2
        end,
        ['write job'] = function(at)
            redis.call('HSET', jobs, ARGV[at], ARGV[at + 1])
            return at + 2
        end,
        ['delete job'] = function(at)
            redis.call('HDEL', jobs, ARGV[at])
            return at + 1
        end,
    }

    apply_retry_ops = function()
        local at = first_op
        while at < #ARGV - 1 do
            at = operations[ARGV[at]](at + 1)
        end
        for _, handler in ipairs(handlers) do
            local waiting, parked = 'waiting ' .. handler.name, 'parked ' .. handler.name
            if redis.call('ZCARD', handler.since) == 0 then
                redis.call('HDEL', counts, waiting, parked)
            else
                redis.call(
                    'HSET', counts, waiting, ms(math.max(handler.waiting_count, 0)),
                    parked, ms(math.max(handler.parked_count, 0))
                )
            end
        end
    end
end
local cursor = ARGV[4]
if string.byte(cursor) == 63 then -- ?
    cursor = string.sub(cursor, 2)
    if #redis.call('XRANGE', KEYS[3], cursor, cursor) == 0 then
        return 2
    end
end

-- XCLAIM passes over what is not in the stream. As long as nothing else is written, it can be taken back.
local claimed = 0
for i = first_waiting, first_done - 1, CHUNK do
    local ids = { unpack(ARGV, i, math.min(i + CHUNK, first_done) - 1) }
    ids[#ids + 1] = 'FORCE'
    ids[#ids + 1] = 'JUSTID'
    claimed = claimed + #redis.call('XCLAIM', KEYS[3], group, consumer, 0, unpack(ids))
end
if claimed < waiting then
    for i = first_waiting, first_done - 1, CHUNK do
        redis.call('XACK', KEYS[3], group, unpack(ARGV, i, math.min(i + CHUNK, first_done) - 1))
    end
    return 2
end
for i = first_dead, first_mark - 1 do
    redis.call('XADD', KEYS[4], '*', 'd', ARGV[i])
end
if apply_retry_ops then
    apply_retry_ops()
end
local lives = {}
local first_life = first_mark + marks
for i = first_life, first_life + 2 * others - 1, 2 do
    lives[tonumber(ARGV[i])] = ARGV[i + 1]
end
for i = 6, last_state do
    local life = lives[i - 5] or ARGV[6]
    if life == '0' then
        redis.call('SET', KEYS[i], ARGV[i + 1])
    else
        redis.call('SET', KEYS[i], ARGV[i + 1], 'EX', life)
    end
end
if cursor ~= '' and ARGV[5] == '-1' then
    redis.call('XGROUP', 'SETID', KEYS[3], group, cursor)
elseif cursor ~= '' then
    redis.call('XGROUP', 'SETID', KEYS[3], group, cursor, 'ENTRIESREAD', ARGV[5])
end
for i = first_done, first_dead - 1, CHUNK do
    redis.call('XACK', KEYS[3], group, unpack(ARGV, i, math.min(i + CHUNK, first_dead) - 1))
end
for i = first_mark, first_mark + marks - 1, CHUNK do
    redis.call('HDEL', KEYS[5], unpack(ARGV, i, math.min(i + CHUNK, first_mark + marks) - 1))
end
redis.call('HSET', KEYS[2], 'commit', ARGV[2])
return 1
