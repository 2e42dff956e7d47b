#!lua flags=allow-oom
-- Trim a partition's stream by retention, as far as every group has handled it. It needs no lease: entries that every
-- group has handled stay handled. Runs also when the server is out of memory (allow-oom), since it makes room.
--
-- KEYS  1 stream
-- ARGV  1 retention, ms   2 entries to keep at most   3 entries to trim at most in one call
-- reply { trimmed, entries left, the oldest entry's time or -1,
--         { name, callbacks not handled or -1 if unknown, ms by which the oldest one kept has outstayed } … }
--       the groups are those that hold back what retention would take
--
-- A group is done with everything below its oldest pending entry, or, if nothing is pending, up to its cursor. Entries
-- that an owner has read and not committed are beyond the cursor, since commit.lua moves the cursor and fills the
-- pending list in one call: so no entry under way is ever below. A group at 0-0 has handled nothing; a stream without
-- groups is left alone, since the first group will want it all. If a group's cursor is beyond the stream's last ID
-- (lua/acquire.lua), nobody knows how far it had come: it counts as 0-0.
local RETENTION_MS, KEEP, LIMIT = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

-- A node of a stream has at most 100 entries by default, and about 4 KiB: trimming by whole nodes leaves less than that
-- over.
local NODE = 100

-- IDs are pairs of 64-bit numbers, more than a Lua number holds: compared as text, the longer number is the greater.
local function less(a, b)
    local a_ms, a_seq = string.match(a, '^(%d+)-(%d+)$')
    local b_ms, b_seq = string.match(b, '^(%d+)-(%d+)$')
    if a_ms ~= b_ms then
        return #a_ms < #b_ms or (#a_ms == #b_ms and a_ms < b_ms)
    end
    return #a_seq < #b_seq or (#a_seq == #b_seq and a_seq < b_seq)
end

local function least(a, b)
    return less(b, a) and b or a
end

-- The ID right after this one; the ID itself where the counter is beyond a Lua number: one entry stays, then.
local function after(id)
    local ms, seq = string.match(id, '^(%d+)-(%d+)$')
    if #seq > 15 then
        return id
    end
    return ms .. '-' .. string.format('%.0f', tonumber(seq) + 1)
end

local function pairs_of(list)
    local found = {}
    for i = 1, #list, 2 do
        found[list[i]] = list[i + 1]
    end
    return found
end

if redis.call('EXISTS', KEYS[1]) == 0 then
    return { 0, 0, -1 }
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local safe
local last_id = pairs_of(redis.call('XINFO', 'STREAM', KEYS[1]))['last-generated-id']
local groups = {}
for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local group = pairs_of(info)
    local done_below
    if less(last_id, group['last-delivered-id']) then
        done_below = '0-0'
    elseif group['pending'] > 0 then
        done_below = redis.call('XPENDING', KEYS[1], group['name'])[2]
    else
        done_below = after(group['last-delivered-id'])
    end
    groups[#groups + 1] = { group['name'], group['lag'] and group['lag'] + group['pending'] or -1, done_below }
    safe = safe and least(safe, done_below) or done_below
end

local trimmed = 0
if safe then
    -- Without retention the clock does not matter: IDs of a server whose clock was ahead go as well.
    local cutoff = string.format('%.0f', math.max(now_ms - RETENTION_MS, 0)) .. '-0'
    local target = RETENTION_MS == 0 and safe or least(safe, cutoff)
    -- Whole nodes cost nothing; the entries of the last one are taken singly, when there are no whole ones.
    trimmed = redis.call('XTRIM', KEYS[1], 'MINID', '~', target, 'LIMIT', LIMIT)
    if trimmed == 0 then
        trimmed = redis.call('XTRIM', KEYS[1], 'MINID', '=', target)
    end
    local excess = redis.call('XLEN', KEYS[1]) - KEEP
    if excess > 0 then
        local more = redis.call('XTRIM', KEYS[1], 'MINID', '~', safe, 'LIMIT', math.min(excess, LIMIT))
        trimmed, excess = trimmed + more, excess - more
    end
    if excess > 0 and excess <= NODE then
        local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', excess + 1)
        local keep = oldest[excess + 1] and oldest[excess + 1][1] or safe
        trimmed = trimmed + redis.call('XTRIM', KEYS[1], 'MINID', '=', least(safe, keep))
    end
end

local left = redis.call('XLEN', KEYS[1])
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local reply = { trimmed, left, -1 }
if first then
    reply[3] = tonumber(string.match(first[1], '^%d+'))
    for _, group in ipairs(groups) do
        local kept = redis.call('XRANGE', KEYS[1], group[3], '+', 'COUNT', 1)[1]
        if kept then
            local age_ms = now_ms - tonumber(string.match(kept[1], '^%d+'))
            -- An entry beyond the count has outstayed for its whole age; only the group that keeps the oldest one is to
            -- blame.
            local too_many = left > KEEP and kept[1] == first[1]
            local outstayed_ms = too_many and age_ms or age_ms - RETENTION_MS
            if outstayed_ms > 0 then
                reply[#reply + 1] = { group[1], group[2], outstayed_ms }
            end
        end
    end
end
return reply
