-- The operations on retry queues: a part of commit.lua, which stands in its place there (`commands/scripts.py`).
--
-- KEYS  1 counts   2 what is taken   3 jobs   then for each handler its due, its parked and its since set   then each
--       queue
-- ARGV  how many handlers, their names as hash fields have them, then the operations. Each is its name and its
--       arguments (`commands/retry_ops.py` says what it means); H and Q are the handler's and the queue's place, from 1:
--         append H Q session delay item       again H Q session delay item    pop H Q session    park H Q session
--         unpark H Q session letter item      untake H Q session              give up H Q session events
--         delete letter ID    requeue ID callback    write job ID record      delete job ID
--       a delay is in ms; the item of `unpark` is empty where there is none
--
-- Counts are added up here and written once. They are there as long as the handler has a queue: so one whose queue an
-- operator has deleted by hand is right again as soon as nothing waits.
local function retry_ops(last_key, dead_letters, first)
    -- `last_key`: the last of KEYS before these; `dead_letters`: the key; `first`: the first of ARGV
    local counts, taken, jobs = KEYS[last_key + 1], KEYS[last_key + 2], KEYS[last_key + 3]
    local first_op = first + 1 + ARGV[first]
    local first_queue = last_key + 3 + 3 * ARGV[first]
    local handlers = {}
    local time = redis.call('TIME')
    local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

    local function text(number)
        return string.format('%.0f', number)
    end

    -- Fails where a command would: an older release's rights do not have all of them, and a key may be of another type.
    local function check()
        for _, command in ipairs({
            { 'RPUSH', counts, '' }, { 'LPUSH', counts, '' }, { 'LSET', counts, 0, '' }, { 'LTRIM', counts, 0, 0 },
            { 'ZADD', counts, 0, '' }, { 'ZREM', counts, '' }, { 'ZSCORE', counts, '' }, { 'ZCARD', counts },
            { 'HSET', counts, '', '' }, { 'HDEL', counts, '' }, { 'XADD', KEYS[3], '*', '', '' },
            { 'XDEL', dead_letters, '0-1' },
        }) do
            if not redis.acl_check_cmd(unpack(command)) then
                error({ err = 'NOPERM commits need the command ' .. command[1] })
            end
        end
        redis.call('HLEN', taken)
        redis.call('HLEN', jobs)
        redis.call('XLEN', dead_letters)
        for place = 1, tonumber(ARGV[first]) do
            local name, key = ARGV[first + place], last_key + 1 + 3 * place
            local found = redis.call('HMGET', counts, 'waiting ' .. name, 'parked ' .. name)
            handlers[place] = {
                name = name, due = KEYS[key], parked = KEYS[key + 1], since = KEYS[key + 2],
                waiting_count = tonumber(found[1]) or 0, parked_count = tonumber(found[2]) or 0,
            }
            redis.call('ZCARD', KEYS[key])
            redis.call('ZCARD', KEYS[key + 1])
            redis.call('ZCARD', KEYS[key + 2])
        end
        for key = first_queue + 1, #KEYS do
            redis.call('LLEN', KEYS[key])
        end
    end

    -- The queue that an operation names.
    local function queue_at(at)
        local handler, session = handlers[tonumber(ARGV[at])], ARGV[at + 2]
        local parked = redis.call('ZSCORE', handler.parked, session)
        return { handler = handler, list = KEYS[first_queue + ARGV[at + 1]], session = session, parked = parked }
    end
    local function count(queue, events)
        local handler = queue.handler
        handler.waiting_count = handler.waiting_count + events
        if queue.parked then
            handler.parked_count = handler.parked_count + events
        end
    end
    local function push(queue, side, item)
        redis.call(side, queue.list, item)
        count(queue, 1)
    end
    local function remove(queue, events)
        local removed = math.min(redis.call('LLEN', queue.list), events)
        if removed > 0 then
            redis.call('LTRIM', queue.list, removed, -1)
            count(queue, -removed)
        end
    end
    local function begin(queue, set, at_ms)
        redis.call('ZADD', set, text(at_ms), queue.session)
        redis.call('ZADD', queue.handler.since, 'NX', text(now_ms), queue.session)
    end
    -- A queue that is not parked is due, unless it is empty: then it is gone.
    local function schedule(queue, delay_ms)
        if queue.parked then
            return
        elseif redis.call('LLEN', queue.list) == 0 then
            redis.call('ZREM', queue.handler.due, queue.session)
            redis.call('ZREM', queue.handler.since, queue.session)
        else
            begin(queue, queue.handler.due, now_ms + delay_ms)
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
        local deleted = redis.pcall('XDEL', dead_letters, id) -- fails where an operator's text is no ID
        return type(deleted) == 'number' and deleted > 0
    end

    -- Each takes the place of its first argument, and returns how many arguments it has.
    local operations = {
        append = function(at)
            local queue = queue_at(at)
            push(queue, 'RPUSH', ARGV[at + 4])
            if not redis.call('ZSCORE', queue.handler.due, queue.session) then
                schedule(queue, ARGV[at + 3])
            end
            return 5
        end,
        again = function(at)
            local queue = queue_at(at)
            if redis.call('LLEN', queue.list) > 0 then
                redis.call('LSET', queue.list, 0, ARGV[at + 4])
            else
                push(queue, 'RPUSH', ARGV[at + 4])
            end
            untake(queue)
            schedule(queue, ARGV[at + 3])
            return 5
        end,
        pop = function(at)
            local queue = queue_at(at)
            remove(queue, 1)
            untake(queue)
            schedule(queue, 0)
            return 3
        end,
        park = function(at)
            local queue = queue_at(at)
            remove(queue, 1)
            untake(queue)
            if not queue.parked then
                queue.handler.parked_count = queue.handler.parked_count + redis.call('LLEN', queue.list)
                redis.call('ZREM', queue.handler.due, queue.session)
                begin(queue, queue.handler.parked, now_ms)
            end
            return 3
        end,
        unpark = function(at)
            local queue = queue_at(at)
            delete_letter(ARGV[at + 3])
            unpark(queue)
            if ARGV[at + 4] ~= '' then
                push(queue, 'LPUSH', ARGV[at + 4])
            end
            schedule(queue, 0)
            return 5
        end,
        untake = function(at)
            local queue = queue_at(at)
            untake(queue)
            schedule(queue, 0)
            return 3
        end,
        ['give up'] = function(at)
            local queue = queue_at(at)
            unpark(queue)
            remove(queue, tonumber(ARGV[at + 3]))
            schedule(queue, 0)
            return 4
        end,
        ['delete letter'] = function(at)
            delete_letter(ARGV[at])
            return 1
        end,
        requeue = function(at)
            if delete_letter(ARGV[at]) then
                redis.call('XADD', KEYS[3], '*', 'c', ARGV[at + 1])
            end
            return 2
        end,
        ['write job'] = function(at)
            redis.call('HSET', jobs, ARGV[at], ARGV[at + 1])
            return 2
        end,
        ['delete job'] = function(at)
            redis.call('HDEL', jobs, ARGV[at])
            return 1
        end,
    }

    -- Behind the operations are the number of keys, and the word.
    local function apply()
        local at = first_op
        while at < #ARGV - 1 do
            at = at + 1 + operations[ARGV[at]](at + 1)
        end
        for _, handler in ipairs(handlers) do
            local waiting, parked = 'waiting ' .. handler.name, 'parked ' .. handler.name
            if redis.call('ZCARD', handler.since) == 0 then
                redis.call('HDEL', counts, waiting, parked)
            else
                redis.call(
                    'HSET', counts, waiting, text(math.max(handler.waiting_count, 0)),
                    parked, text(math.max(handler.parked_count, 0))
                )
            end
        end
    end

    return { check = check, apply = apply }
end
