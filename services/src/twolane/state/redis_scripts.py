"""The Lua scripts behind redis.py: each runs as one atomic step inside Redis, on Redis's own clock.

Keys, all under one hash tag so that a Redis cluster keeps them together: `workers` and `leases`
(sorted by expiry in ms), `worker:<id>`, `prefix:<id>`, `lease:<id>`, `meta` (last numbers given),
`changes` (the feed, a stream). What belongs to a worker or a lease expires by itself.
"""

from __future__ import annotations

# Redis removes what no broker swept after this long.
GRACE_MS = 60_000
# The feed goes when nothing has changed for an hour; its numbering goes on.
FEED_TTL_MS = 3_600_000

_PRELUDE = f"""
local ns, feed_limit = KEYS[1], ARGV[1]
local GRACE, FEED_TTL, CHUNK = {GRACE_MS}, {FEED_TTL_MS}, 1000
local clock = redis.call('TIME')
local micros = clock[1] * 1000000 + clock[2]
local now = math.floor(micros / 1000)

local function key(name) return ns .. ':' .. name end

-- Numbers grow over a loss of all data too, because time does.
local function next_number(field)
  local last = tonumber(redis.call('HGET', key('meta'), field) or '0')
  local number = string.format('%.0f', math.max(last + 1, micros))
  redis.call('HSET', key('meta'), field, number)
  return number
end

-- Numbers given from now on are greater than this one, which another life of the data gave.
local function stay_above(field, number)
  if tonumber(number) > tonumber(redis.call('HGET', key('meta'), field) or '0') then
    redis.call('HSET', key('meta'), field, number)
  end
end

local function announce(...)
  redis.call('HSETNX', key('meta'), 'generation', string.format('%.0f', micros))
  local sequence = redis.call('HINCRBY', key('meta'), 'sequence', 1)
  local generation = redis.call('HGET', key('meta'), 'generation')
  redis.call('XADD', key('changes'), 'MAXLEN', '~', feed_limit, '*',
    'sequence', sequence, 'generation', generation, ...)
  redis.call('PEXPIRE', key('changes'), FEED_TTL)
end

local function keep_longer(name, ttl)
  if redis.call('PTTL', key(name)) < ttl + GRACE then
    redis.call('PEXPIRE', key(name), ttl + GRACE)
  end
end

local function in_chunks(command, name, first, last)
  for start = first, last, CHUNK do
    redis.call(command, key(name), unpack(ARGV, start, math.min(start + CHUNK - 1, last)))
  end
end

local function incarnation_of(worker)
  local expires = redis.call('ZSCORE', key('workers'), worker)
  if not expires or tonumber(expires) <= now then return '0' end
  return redis.call('HGET', key('worker:' .. worker), 'incarnation') or '0'
end

local function drop_worker(worker)
  redis.call('ZREM', key('workers'), worker)
  redis.call('DEL', key('worker:' .. worker), key('prefix:' .. worker))
  announce('gone', worker)
end

local function drop_lease(lease)
  redis.call('ZREM', key('leases'), lease)
  redis.call('DEL', key('lease:' .. lease))
end

local function drop_leases_of(worker)
  for _, lease in ipairs(redis.call('ZRANGE', key('leases'), 0, -1)) do
    local sides = redis.call('HMGET', key('lease:' .. lease), 'owner', 'writer')
    if sides[1] == worker or sides[2] == worker then drop_lease(lease) end
  end
end

local function owns(lease, owner, incarnation)
  local known = redis.call('HMGET', key('lease:' .. lease), 'owner', 'owner_incarnation')
  return known[1] == owner and known[2] == incarnation
end

local function prolong_worker(worker, ttl)
  redis.call('ZADD', key('workers'), now + ttl, worker)
  redis.call('PEXPIRE', key('worker:' .. worker), ttl + GRACE)
  redis.call('PEXPIRE', key('prefix:' .. worker), ttl + GRACE)
  keep_longer('workers', ttl)
end

local function prolong_lease(lease, ttl)
  redis.call('ZADD', key('leases'), now + ttl, lease)
  redis.call('PEXPIRE', key('lease:' .. lease), ttl + GRACE)
  keep_longer('leases', ttl)
end
"""

# worker, ttl, model, fingerprint, fixed, status, incarnation it has or 0, hashes...
REGISTER = (
    _PRELUDE
    + """
local worker, ttl, model, fingerprint = ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
for _, other in ipairs(redis.call('ZRANGEBYSCORE', key('workers'), '(' .. now, '+inf')) do
  if other ~= worker then
    local known = redis.call('HMGET', key('worker:' .. other), 'model', 'fingerprint', 'fixed', 'status')
    if known[1] == model and known[2] ~= fingerprint then return {'0', known[3] .. known[4]} end
  end
end
local held, incarnation = ARGV[8], redis.call('HGET', key('worker:' .. worker), 'incarnation')
if held ~= '0' and (not incarnation or incarnation == held) then
  incarnation = held
  stay_above('incarnation', held)
else
  drop_leases_of(worker)
  incarnation = next_number('incarnation')
end
redis.call('DEL', key('worker:' .. worker), key('prefix:' .. worker))
redis.call('HSET', key('worker:' .. worker), 'incarnation', incarnation, 'model', model,
  'fingerprint', fingerprint, 'fixed', ARGV[6], 'status', ARGV[7])
in_chunks('SADD', 'prefix:' .. worker, 9, #ARGV)
prolong_worker(worker, ttl)
announce('joined', worker, 'incarnation', incarnation, 'info', ARGV[6] .. ARGV[7])
return {incarnation}
"""
)

# worker, ttl, incarnation, status, number of added, added..., removed...
HEARTBEAT = (
    _PRELUDE
    + """
local worker, ttl, status, n_added = ARGV[2], tonumber(ARGV[3]), ARGV[5], tonumber(ARGV[6])
local known = redis.call('HMGET', key('worker:' .. worker), 'fixed', 'status', 'incarnation')
if known[3] ~= ARGV[4] then return 0 end
redis.call('HSET', key('worker:' .. worker), 'status', status)
in_chunks('SADD', 'prefix:' .. worker, 7, 6 + n_added)
in_chunks('SREM', 'prefix:' .. worker, 7 + n_added, #ARGV)
prolong_worker(worker, ttl)
if known[2] ~= status or #ARGV > 6 then
  announce('changed', worker, 'incarnation', ARGV[4], 'info', known[1] .. status,
    'added', table.concat(ARGV, '', 7, 6 + n_added),
    'removed', table.concat(ARGV, '', 7 + n_added, #ARGV))
end
return 1
"""
)

# worker, incarnation
DEREGISTER = (
    _PRELUDE
    + """
if ARGV[3] == '0' or incarnation_of(ARGV[2]) ~= ARGV[3] then return 0 end
drop_leases_of(ARGV[2])
drop_worker(ARGV[2])
return 1
"""
)

# worker...; without any: all. Answers id, incarnation and info of each living one.
FIND = (
    _PRELUDE
    + """
local asked = {}
if #ARGV == 1 then
  asked = redis.call('ZRANGEBYSCORE', key('workers'), '(' .. now, '+inf')
else
  for i = 2, #ARGV do asked[#asked + 1] = ARGV[i] end
end
local found = {}
for _, worker in ipairs(asked) do
  local incarnation = incarnation_of(worker)
  if incarnation ~= '0' then
    local known = redis.call('HMGET', key('worker:' .. worker), 'fixed', 'status')
    found[#found + 1] = {worker, incarnation, known[1] .. known[2]}
  end
end
return found
"""
)

# Answers the same for every worker that no sweep has removed.
FIND_UNSWEPT = (
    _PRELUDE
    + """
local found = {}
for _, worker in ipairs(redis.call('ZRANGE', key('workers'), 0, -1)) do
  local known = redis.call('HMGET', key('worker:' .. worker), 'incarnation', 'fixed', 'status')
  if known[1] then found[#found + 1] = {worker, known[1], known[2] .. known[3]} end
end
return found
"""
)

# Answers the number of names of all living workers.
COUNT_PREFIXES = (
    _PRELUDE
    + """
local entries = 0
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', key('workers'), '(' .. now, '+inf')) do
  entries = entries + redis.call('SCARD', key('prefix:' .. worker))
end
return entries
"""
)

# ttl, owner, owner's incarnation, writer, writer's incarnation, lease
GRANT = (
    _PRELUDE
    + """
local owner, writer = incarnation_of(ARGV[3]), incarnation_of(ARGV[5])
if owner == '0' or owner ~= ARGV[4] then return {'owner', owner} end
if writer == '0' or writer ~= ARGV[6] then return {'writer', writer} end
local fence = next_number('fence')
local lease = 'lease-' .. fence
redis.call('HSET', key('lease:' .. lease), 'owner', ARGV[3], 'owner_incarnation', owner,
  'writer', ARGV[5], 'fence', fence, 'lease', ARGV[7])
prolong_lease(lease, tonumber(ARGV[2]))
return {'granted', fence}
"""
)

# ttl, owner, owner's incarnation, lease...; answers those that are gone.
RENEW = (
    _PRELUDE
    + """
local gone = {}
for i = 5, #ARGV do
  local lease = ARGV[i]
  local expires = redis.call('ZSCORE', key('leases'), lease)
  if expires and tonumber(expires) > now and owns(lease, ARGV[3], ARGV[4]) then
    prolong_lease(lease, tonumber(ARGV[2]))
  else
    gone[#gone + 1] = lease
  end
end
return gone
"""
)

# ttl, owner, owner's incarnation, writer, writer's incarnation, lease's id, fence, lease
ADOPT = (
    _PRELUDE
    + """
local owner, writer = incarnation_of(ARGV[3]), incarnation_of(ARGV[5])
if owner == '0' or writer == '0' then return {'unknown', '0'} end
if owner ~= ARGV[4] then return {'owner', owner} end
if writer ~= ARGV[6] then return {'writer', writer} end
stay_above('fence', ARGV[8])
redis.call('HSET', key('lease:' .. ARGV[7]), 'owner', ARGV[3], 'owner_incarnation', owner,
  'writer', ARGV[5], 'fence', ARGV[8], 'lease', ARGV[9])
prolong_lease(ARGV[7], tonumber(ARGV[2]))
return {'adopted', ARGV[8]}
"""
)

# owner, owner's incarnation, lease...; answers how many were dropped.
RELEASE = (
    _PRELUDE
    + """
local dropped = 0
for i = 4, #ARGV do
  if owns(ARGV[i], ARGV[2], ARGV[3]) then
    drop_lease(ARGV[i])
    dropped = dropped + 1
  end
end
return dropped
"""
)

# Answers id, fence and lease of each that is out.
LEASES = (
    _PRELUDE
    + """
local out = {}
for _, lease in ipairs(redis.call('ZRANGEBYSCORE', key('leases'), '(' .. now, '+inf')) do
  local known = redis.call('HMGET', key('lease:' .. lease), 'fence', 'lease')
  if known[1] then out[#out + 1] = {lease, known[1], known[2]} end
end
return out
"""
)

# Answers expired leases, silent workers, and how many leases are left.
SWEEP = (
    _PRELUDE
    + """
local expired = redis.call('ZRANGEBYSCORE', key('leases'), '-inf', now)
for _, lease in ipairs(expired) do drop_lease(lease) end
local gone = redis.call('ZRANGEBYSCORE', key('workers'), '-inf', now)
for _, worker in ipairs(gone) do drop_worker(worker) end
return {expired, gone, redis.call('ZCARD', key('leases'))}
"""
)

# Answers generation, sequence and the id of the feed's last entry.
POSITION = (
    _PRELUDE
    + """
local meta = redis.call('HMGET', key('meta'), 'generation', 'sequence')
local last = redis.call('XREVRANGE', key('changes'), '+', '-', 'COUNT', 1)
return {meta[1] or '', meta[2] or '0', last[1] and last[1][1] or '0-0'}
"""
)

# Takes or keeps the lead; answers 1, or 0 when another holder has it.
LEAD = (
    _PRELUDE
    + """
local holder, ttl = ARGV[2], ARGV[3]
local leader = redis.call('GET', key('leader'))
if leader and leader ~= holder then return 0 end
redis.call('SET', key('leader'), holder, 'PX', ttl)
return 1
"""
)
