-- The squad's schema: the log, and the tables that are rebuilt from it.
--
-- Names are not qualified; the search_path decides which squad they belong to. One squad is one Postgres
-- schema. This file is the only DDL: eventstore/schema.py runs the part before "-- @superseded" on a new
-- schema, and records its version. The steps that upgrade an older version are at the end, each after a line
-- "-- @upgrade N"; a step that creates a table ends with settle_access(). Functions are defined once: an
-- upgrade first runs what is below "-- @superseded", then replaces all functions, then runs its steps. The
-- read tables are between "-- @read-tables" and "-- @end", from where a replay recreates one that was dropped.


-- The log ----------------------------------------------------------------------------------------------

CREATE TABLE schema_info (
    version     integer     NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- One immutable event per row, in one total order. The primary key and the two unique keys are the backstop
-- of what append_events guarantees. No text of the envelope may contain its separator, a line feed, so that no
-- two envelopes hash alike. `data` is json, not jsonb: json keeps every byte as it was written.
CREATE TABLE events (
    position         bigint      PRIMARY KEY CHECK (position > 0),
    id               uuid        NOT NULL UNIQUE,
    stream           text        NOT NULL CHECK (strpos(stream, E'\n') = 0),
    version          bigint      NOT NULL CHECK (version > 0),
    type             text        NOT NULL CHECK (strpos(type, E'\n') = 0),
    schema_version   smallint    NOT NULL CHECK (schema_version > 0),
    data             json        NOT NULL,
    actor            text        NOT NULL CHECK (strpos(actor, E'\n') = 0),
    caused_by        bigint      CHECK (caused_by < position),
    correlation_id   text        NOT NULL CHECK (strpos(correlation_id, E'\n') = 0),
    idempotency_key  text        CHECK (strpos(idempotency_key, E'\n') = 0),
    recorded_at      timestamptz NOT NULL,
    hash             bytea       NOT NULL CHECK (length(hash) = 32),
    agent            text        GENERATED ALWAYS AS
                                     (coalesce(data ->> 'agent', data ->> 'assigned_agent', data ->> 'handled_by'))
                                     STORED,
    UNIQUE (stream, version)
);

CREATE INDEX events_by_type ON events (type, position);
CREATE INDEX events_by_agent ON events (agent, position) WHERE agent IS NOT NULL;
CREATE UNIQUE INDEX events_idempotency_key ON events (idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE UNIQUE INDEX events_gmail_message_id ON events ((data ->> 'gmail_message_id'))
    WHERE type = 'email_received';

-- Statistics of a table that only grows at its end are soon stale; the planner must never think it small.
ALTER TABLE events SET (autovacuum_analyze_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);


-- Refuse to change history -----------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on the event log is refused: events are immutable', TG_OP
        USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER events_are_immutable BEFORE UPDATE OR DELETE ON events
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER events_are_never_truncated BEFORE TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
-- Fires even if no row matches. All three triggers fire even if session_replication_role is replica.
CREATE TRIGGER events_are_not_updated BEFORE UPDATE OR DELETE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE events ENABLE ALWAYS TRIGGER events_are_immutable;
ALTER TABLE events ENABLE ALWAYS TRIGGER events_are_never_truncated;
ALTER TABLE events ENABLE ALWAYS TRIGGER events_are_not_updated;


-- Lock the log -----------------------------------------------------------------------------------------
-- Held until the transaction ends. It must be a statement of its own, before any read of the head: a
-- statement that waited for the lock still sees the log as it was when the wait began.

CREATE OR REPLACE FUNCTION lock_log() RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock('events'::regclass::oid::integer, 1)
$$;


-- The channel of a squad's notifications ---------------------------------------------------------------
-- Channels are shared by a whole database, and squads are schemas.

CREATE OR REPLACE FUNCTION log_channel() RETURNS text LANGUAGE sql STABLE AS $$
    SELECT current_schema() || '.events'
$$;


-- Append a batch at the head ---------------------------------------------------------------------------
-- Appends after `expected` or not at all. Returns the head, the database's clock, and for how many seconds
-- the lock was waited for. If the head is not `expected`, or the clock that the decisions used is off by
-- more than a second, nothing is inserted and `appended` is false; the caller decides again.
--
-- Each column of the batch is one text, its values separated by U+001F, which none of them can contain:
-- names have no control characters, and JSON escapes them. An empty value is NULL. This is much cheaper
-- to write and to parse than an array literal. Hashes are concatenated, 32 bytes each.

CREATE OR REPLACE FUNCTION append_events(
    expected         bigint,
    decided_at       timestamptz,
    recorded_at      timestamptz,
    events           integer,
    ids              text,
    streams          text,
    versions         text,
    types            text,
    schema_versions  text,
    datas            text,
    actors           text,
    causes           text,
    correlation_ids  text,
    idempotency_keys text,
    hashes           bytea,
    OUT appended     boolean,
    OUT head         bigint,
    OUT clock        timestamptz,
    OUT waited       double precision
) LANGUAGE plpgsql AS $$
DECLARE
    separator constant text := E'\x1f';
    asked     constant timestamptz := clock_timestamp();
    inserted  integer;
BEGIN
    PERFORM lock_log();
    clock := clock_timestamp();
    waited := extract(epoch FROM clock - asked);
    SELECT coalesce(max(e.position), 0) INTO head FROM events e;
    appended := head = expected AND abs(extract(epoch FROM clock - decided_at)) <= 1;
    IF NOT appended THEN
        RETURN;
    END IF;
    IF append_events.events = 1 THEN
        -- Taking the texts apart would take a tenth of a millisecond, however short they are.
        INSERT INTO events (position, id, stream, version, type, schema_version, data, actor, caused_by,
                            correlation_id, idempotency_key, recorded_at, hash)
        VALUES (expected + 1, ids::uuid, streams, append_events.versions::bigint, types,
                append_events.schema_versions::smallint, datas::json, actors, nullif(causes, '')::bigint,
                correlation_ids, nullif(idempotency_keys, ''), append_events.recorded_at, hashes);
        GET DIAGNOSTICS inserted = ROW_COUNT;
    ELSE
        INSERT INTO events (position, id, stream, version, type, schema_version, data, actor, caused_by,
                            correlation_id, idempotency_key, recorded_at, hash)
        SELECT expected + n, id::uuid, stream, version::bigint, type, schema_version::smallint, data::json, actor,
               cause::bigint, correlation_id, idempotency_key, append_events.recorded_at,
               substring(hashes FROM (n::integer - 1) * 32 + 1 FOR 32)
        FROM unnest(string_to_array(ids, separator),
                    string_to_array(streams, separator),
                    string_to_array(append_events.versions, separator),
                    string_to_array(types, separator),
                    string_to_array(schema_versions, separator),
                    string_to_array(datas, separator),
                    string_to_array(actors, separator),
                    string_to_array(causes, separator, ''),
                    string_to_array(correlation_ids, separator),
                    string_to_array(idempotency_keys, separator, ''))
            WITH ORDINALITY AS new (id, stream, version, type, schema_version, data, actor, cause,
                                    correlation_id, idempotency_key, n);
        GET DIAGNOSTICS inserted = ROW_COUNT;
    END IF;
    -- Also of one alone: a rule or a trigger of somebody else's could have dropped it.
    IF inserted <> append_events.events THEN
        RAISE EXCEPTION '% events were announced and % arrived', append_events.events, inserted
            USING ERRCODE = 'data_exception';
    END IF;
    head := expected + append_events.events;
    PERFORM pg_notify(log_channel(), head::text);
END
$$;


-- The position at a moment -----------------------------------------------------------------------------
-- The last position recorded at or before the moment; 0 before the first. recorded_at never goes backwards
-- along the log, so it is found by binary search on the primary key, without an index on recorded_at.

CREATE OR REPLACE FUNCTION position_at(moment timestamptz) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE
    low  bigint := 0;
    high bigint := (SELECT coalesce(max(e.position), 0) FROM events e);
    mid  bigint;
BEGIN
    WHILE low < high LOOP
        mid := (low + high + 1) / 2;
        IF (SELECT e.recorded_at FROM events e WHERE e.position = mid) <= moment THEN
            low := mid;
        ELSE
            high := mid - 1;
        END IF;
    END LOOP;
    RETURN low;
END
$$;


-- The positions of the read tables ---------------------------------------------------------------------
-- A projection's rows and its position change in one transaction. A failed one says where and why. The
-- generation is the same for all, and grows whenever a replay has replaced rows.

CREATE TABLE projections (
    name            text        PRIMARY KEY,
    position        bigint      NOT NULL DEFAULT 0,
    fold_version    integer     NOT NULL,
    failed_position bigint,
    error           text,
    updated_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    generation      bigint      NOT NULL DEFAULT 1
);


-- Advance projections ----------------------------------------------------------------------------------
-- Called in the transaction that changes their rows, before it does so: a replay that replaces rows locks
-- `projections` first too, so they cannot deadlock. Raises an exception if a projection is not at the position
-- and of the generation that the caller expects: then another process has advanced it or replaced its rows,
-- and the caller's rows must not be stored.

CREATE OR REPLACE FUNCTION advance_projections(names text[], expected bigint, reached bigint, known_generation bigint)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    moved integer;
BEGIN
    UPDATE projections p SET position = reached, updated_at = clock_timestamp()
    WHERE p.name = ANY (names) AND p.position = expected AND p.generation = known_generation;
    GET DIAGNOSTICS moved = ROW_COUNT;
    IF moved <> cardinality(names) THEN
        RAISE EXCEPTION 'a projection of % is no longer at position % of generation %', names, expected,
            known_generation USING ERRCODE = 'serialization_failure';
    END IF;
    PERFORM pg_notify(current_schema() || '.projections', reached::text);
END
$$;


-- Snapshots --------------------------------------------------------------------------------------------
-- The decision state at some positions, so that looking back need not begin at the first event. `fold`
-- identifies the code that folded it; a snapshot of other code is never read.

CREATE TABLE snapshots (
    fold      text        NOT NULL,
    position  bigint      NOT NULL CHECK (position > 0),
    state     bytea       NOT NULL,
    taken_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (fold, position)
);
-- The planner's statistics contain values of the table until it is analyzed again. So columns that may have to
-- be forgotten have no statistics, here and below.
ALTER TABLE snapshots ALTER COLUMN state SET STATISTICS 0;


-- Keys of sealed payloads ------------------------------------------------------------------------------
-- Personal data in an event may be sealed with the key of its subject. These keys are the one thing that is
-- not rebuilt from the log, on purpose: to forget a subject is to destroy its key. The event that records this
-- destroys the key in the same transaction, and all snapshots with it. `subject` is a digest of a sender's
-- address; it is NULL for the key of a message, which only the message refers to.
--
-- A snapshot that is being written is not visible here. Its writer takes the log's lock before it commits,
-- and checks whether a subject was forgotten since it read its first event.

CREATE TABLE subject_keys (
    id          uuid        PRIMARY KEY,
    subject     text,
    key         bytea       NOT NULL CHECK (length(key) = 32),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX subject_keys_subject ON subject_keys (subject) WHERE subject IS NOT NULL;
ALTER TABLE subject_keys ALTER COLUMN subject SET STATISTICS 0, ALTER COLUMN key SET STATISTICS 0;

-- Runs as the schema's owner: no other role may delete a key, and none needs to. So it trusts nothing that
-- its caller controls: neither the search path nor a different table that it could be made a trigger of.
CREATE OR REPLACE FUNCTION destroy_key() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    destroyed constant uuid := (NEW.data ->> 'key_id')::uuid;
    is_left   boolean;
BEGIN
    EXECUTE format('DELETE FROM %I.subject_keys WHERE id = $1', TG_TABLE_SCHEMA) USING destroyed;
    EXECUTE format('DELETE FROM %I.snapshots', TG_TABLE_SCHEMA);
    -- Another trigger, or row level security that is forced, may have kept what was to go.
    EXECUTE format('SELECT EXISTS (SELECT FROM %1$I.subject_keys WHERE id = $1)'
                   ' OR EXISTS (SELECT FROM %1$I.snapshots)', TG_TABLE_SCHEMA)
        INTO is_left USING destroyed;
    IF is_left THEN
        RAISE EXCEPTION 'something keeps the key, or a snapshot, from being destroyed: nobody is forgotten'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END
$$;
REVOKE EXECUTE ON FUNCTION destroy_key() FROM PUBLIC;

CREATE TRIGGER events_destroy_keys AFTER INSERT ON events
    FOR EACH ROW WHEN (NEW.type = 'subject_forgotten') EXECUTE FUNCTION destroy_key();
-- Even if session_replication_role is replica.
ALTER TABLE events ENABLE ALWAYS TRIGGER events_destroy_keys;

-- Finds the e-mails that a key has sealed. The type is tested first, so other events are not parsed.
CREATE INDEX events_by_key ON events ((data #>> '{sealed,key}'))
    WHERE type IN ('email_received', 'email_updated') AND (data #>> '{sealed,key}') IS NOT NULL;


-- @read-tables
-- Agents -----------------------------------------------------------------------------------------------

CREATE TABLE squad_agents (
    id            uuid        NOT NULL,
    name          text        PRIMARY KEY,
    role          text        NOT NULL,
    status        text        NOT NULL CHECK (status IN ('active', 'idle', 'offline')),
    last_active   timestamptz NOT NULL,
    url           text,
    priority      integer     NOT NULL,
    operations    integer     NOT NULL,
    registered_at timestamptz NOT NULL,
    position      bigint      NOT NULL
);


-- Messages ---------------------------------------------------------------------------------------------

CREATE TABLE squad_messages (
    id         uuid        PRIMARY KEY,
    from_agent text        NOT NULL,
    to_agent   text,
    message    text        NOT NULL,
    task_id    text,
    data       jsonb,
    created_at timestamptz NOT NULL,
    position   bigint      NOT NULL UNIQUE
);
CREATE INDEX squad_messages_from ON squad_messages (from_agent, position);
CREATE INDEX squad_messages_to ON squad_messages (to_agent, position);
CREATE INDEX squad_messages_task ON squad_messages (task_id, position) WHERE task_id IS NOT NULL;
ALTER TABLE squad_messages ALTER COLUMN message SET STATISTICS 0, ALTER COLUMN data SET STATISTICS 0;

CREATE TABLE squad_message_acks (
    message_id      uuid        NOT NULL,
    agent           text        NOT NULL,
    acknowledged_at timestamptz NOT NULL,
    position        bigint      NOT NULL,
    PRIMARY KEY (message_id, agent)
);


-- Operations and conflicts -----------------------------------------------------------------------------

CREATE TABLE operations (
    id            uuid        PRIMARY KEY,
    agent         text        NOT NULL,
    action        text        NOT NULL,
    resources     jsonb       NOT NULL,
    state         text        NOT NULL CHECK (state IN ('active', 'finished', 'expired')),
    outcome       text,
    tokens_used   bigint,
    ttl_seconds   double precision NOT NULL,
    started_at    timestamptz NOT NULL,
    renewed_at    timestamptz NOT NULL,
    blocks_until  timestamptz NOT NULL,
    expires_at    timestamptz NOT NULL,
    ended_at      timestamptz,
    fencing_token bigint      NOT NULL UNIQUE,
    position      bigint      NOT NULL
);
CREATE INDEX operations_by_state ON operations (state, fencing_token);
CREATE INDEX operations_by_agent ON operations (agent, fencing_token);

CREATE TABLE conflicts (
    id                uuid        PRIMARY KEY,
    agent             text        NOT NULL,
    action            text        NOT NULL,
    resources         jsonb       NOT NULL,
    contested         jsonb       NOT NULL,
    operation_id      uuid        NOT NULL,
    operation_agents  jsonb       NOT NULL,
    operation_action  text        NOT NULL,
    detected_at       timestamptz NOT NULL,
    position          bigint      NOT NULL UNIQUE
);
CREATE INDEX conflicts_by_agent ON conflicts (agent, position);


-- Budget -----------------------------------------------------------------------------------------------

-- One row: the current policy. Earlier ones are in the log.
CREATE TABLE policy (
    name                      text             PRIMARY KEY,
    daily_tokens              bigint           NOT NULL,
    agent_limits              jsonb            NOT NULL,
    warning_percents          jsonb            NOT NULL,
    reset_hour                integer          NOT NULL,
    timezone                  text             NOT NULL,
    conflict_window_seconds   double precision NOT NULL,
    operation_timeout_seconds double precision NOT NULL,
    idle_after_minutes        double precision NOT NULL,
    offline_after_minutes     double precision NOT NULL,
    set_by                    text             NOT NULL,
    set_at                    timestamptz      NOT NULL,
    position                  bigint           NOT NULL
);

-- Totals per day; those per agent are in budgets.
CREATE TABLE budget_days (
    day            date        PRIMARY KEY,
    total          bigint      NOT NULL,
    used           bigint      NOT NULL,
    reserved       bigint      NOT NULL,
    warned_percent integer     NOT NULL,
    starts_at      timestamptz NOT NULL,
    ends_at        timestamptz NOT NULL,
    closed_at      timestamptz,
    position       bigint      NOT NULL
);

CREATE TABLE budgets (
    day      date   NOT NULL,
    agent    text   NOT NULL,
    used     bigint NOT NULL,
    reserved bigint NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (day, agent)
);

-- The same usage by model, '' where none was named; input and output as far as they were reported as such.
CREATE TABLE token_usage (
    day           date   NOT NULL,
    agent         text   NOT NULL,
    model         text   NOT NULL,
    tokens        bigint NOT NULL,
    input_tokens  bigint NOT NULL,
    output_tokens bigint NOT NULL,
    position      bigint NOT NULL,
    PRIMARY KEY (day, agent, model)
);

CREATE TABLE reservations (
    id          uuid        PRIMARY KEY,
    agent       text        NOT NULL,
    tokens      bigint      NOT NULL,
    day         date        NOT NULL,
    state       text        NOT NULL CHECK (state IN ('active', 'settled', 'released', 'expired')),
    tokens_used bigint,
    created_at  timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL,
    ended_at    timestamptz,
    position    bigint      NOT NULL
);
CREATE INDEX reservations_by_state ON reservations (state, position);


-- Tasks ------------------------------------------------------------------------------------------------

CREATE TABLE squad_tasks (
    id              uuid        PRIMARY KEY,
    title           text        NOT NULL,
    description     text,
    status          text        NOT NULL CHECK (status IN ('new', 'in_progress', 'completed')),
    assigned_agent  text,
    priority        text        NOT NULL CHECK (priority IN ('low', 'medium', 'high', 'urgent')),
    deliverable_url text,
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    created_position bigint     NOT NULL UNIQUE,
    position        bigint      NOT NULL
);
CREATE INDEX squad_tasks_by_status ON squad_tasks (status, created_position);
CREATE INDEX squad_tasks_by_agent ON squad_tasks (assigned_agent, created_position);


-- E-mails ----------------------------------------------------------------------------------------------

CREATE TABLE email_logs (
    id               uuid        PRIMARY KEY,
    gmail_message_id text        NOT NULL UNIQUE,
    from_email       text        NOT NULL,
    subject          text,
    category         text        NOT NULL DEFAULT 'unclassified',
    status           text        NOT NULL CHECK (status IN
                                     ('unread', 'classified', 'draft_created', 'sent', 'archived')),
    handled_by       text,
    payload          jsonb,
    created_at       timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL,
    created_position bigint      NOT NULL UNIQUE,
    position         bigint      NOT NULL
);
CREATE INDEX email_logs_by_status ON email_logs (status, created_position);
CREATE INDEX email_logs_by_category ON email_logs (category, created_position);
CREATE INDEX email_logs_by_agent ON email_logs (handled_by, created_position);
ALTER TABLE email_logs ALTER COLUMN from_email SET STATISTICS 0, ALTER COLUMN subject SET STATISTICS 0,
    ALTER COLUMN payload SET STATISTICS 0;


-- Jobs and their runs ----------------------------------------------------------------------------------

CREATE TABLE jobs (
    name             text             PRIMARY KEY,
    source           text             NOT NULL,
    agent            text,
    endpoint         text,
    task             text,
    cron             text,
    every_seconds    double precision,
    timezone         text             NOT NULL,
    tokens           bigint           NOT NULL,
    timeout_seconds  double precision NOT NULL,
    retries          integer          NOT NULL,
    overlap          text             NOT NULL,
    catch_up_seconds double precision NOT NULL,
    jitter_seconds   double precision NOT NULL,
    pause_on_failure boolean          NOT NULL,
    enabled          boolean          NOT NULL,
    resources        jsonb,
    removed          boolean          NOT NULL,
    removed_by       text,
    paused           boolean          NOT NULL,
    pause_note       text,
    ticked_until     timestamptz      NOT NULL,
    buffered_tick    timestamptz,
    position         bigint           NOT NULL
);

CREATE TABLE job_runs (
    id               uuid        PRIMARY KEY,
    job              text        NOT NULL,
    tick             timestamptz NOT NULL,
    status           text        NOT NULL CHECK (status IN
                                     ('running', 'succeeded', 'failed', 'skipped', 'missed', 'lost')),
    manual           boolean     NOT NULL,
    agent            text,
    attempts         integer     NOT NULL,
    attempts_allowed integer     NOT NULL,
    reason           text,
    runner           text,
    lease_expires_at timestamptz,
    retry_at         timestamptz,
    reservation_id   uuid,
    operation_id     uuid,
    tokens_used      bigint,
    started_at       timestamptz,
    finished_at      timestamptz,
    fencing_token    bigint      NOT NULL,
    position         bigint      NOT NULL
);
CREATE INDEX job_runs_by_job ON job_runs (job, fencing_token);
CREATE INDEX job_runs_by_status ON job_runs (status, fencing_token);
CREATE INDEX job_runs_by_token ON job_runs (fencing_token);


-- The orchestrator -------------------------------------------------------------------------------------

CREATE TABLE orchestrator (
    name       text        PRIMARY KEY,
    running    boolean     NOT NULL,
    started_at timestamptz,
    stopped_at timestamptz,
    position   bigint      NOT NULL
);


-- API keys ---------------------------------------------------------------------------------------------
-- Only the SHA-256 of a key is stored. The one row of access has the number of keys that were not revoked: if
-- there are any, every request needs a key.

CREATE TABLE api_keys (
    id            text        PRIMARY KEY,
    scope         text        NOT NULL CHECK (scope IN ('agent', 'operator', 'auditor')),
    agent         text,
    note          text,
    digest        text        NOT NULL,
    state         text        NOT NULL CHECK (state IN ('active', 'expired', 'revoked')),
    created_by    text        NOT NULL,
    created_at    timestamptz NOT NULL,
    expires_at    timestamptz,
    first_used_at timestamptz,
    ended_at      timestamptz,
    position      bigint      NOT NULL
);

CREATE TABLE access (
    name           text   PRIMARY KEY,
    unrevoked_keys bigint NOT NULL,
    position       bigint NOT NULL
);
-- @end


-- Access control ---------------------------------------------------------------------------------------
-- The owner creates the schema and grants access to other roles: the service's role reads the log, appends to
-- it, and maintains the read tables; a reader's role sees everything but the keys of sealed payloads. Neither
-- can change or delete an event, whatever it is granted: row level security has no policy for that, and the
-- triggers above refuse it.

-- Creates the policies of tables that have none, and renews the grants of all roles that have access. Must be
-- called wherever tables were created: at the end of an upgrade, or by a replay that found one missing. A role
-- that may not append to the log cannot change a row of any other table either, and sees no keys.
CREATE OR REPLACE FUNCTION settle_access() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    made    record;
    guest   record;
    appends constant text := format('(SELECT has_table_privilege(%L::regclass, %L))', 'events'::regclass, 'INSERT');
BEGIN
    FOR made IN
        SELECT c.relname AS name FROM pg_class c
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r' AND NOT c.relrowsecurity
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', made.name);
        CASE made.name
            WHEN 'schema_info' THEN
                CREATE POLICY seen ON schema_info FOR SELECT USING (true);
            WHEN 'events' THEN
                CREATE POLICY seen ON events FOR SELECT USING (true);
                EXECUTE format('CREATE POLICY added ON events FOR INSERT WITH CHECK (%s)', appends);
            WHEN 'subject_keys' THEN
                EXECUTE format('CREATE POLICY seen ON subject_keys FOR SELECT USING (%s)', appends);
                EXECUTE format('CREATE POLICY added ON subject_keys FOR INSERT WITH CHECK (%s)', appends);
            ELSE
                EXECUTE format('CREATE POLICY seen ON %I FOR SELECT USING (true)', made.name);
                EXECUTE format('CREATE POLICY kept ON %I USING (%s)', made.name, appends);
        END CASE;
    END LOOP;
    FOR guest IN
        SELECT pg_get_userbyid(entry.grantee) AS name, bool_or(entry.privilege_type = 'INSERT') AS appends
        FROM pg_class c, aclexplode(c.relacl) entry
        WHERE c.oid = 'events'::regclass AND entry.grantee NOT IN (0, c.relowner)
        GROUP BY entry.grantee
    LOOP
        PERFORM let_in(guest.name, CASE WHEN guest.appends THEN 'service' ELSE 'reader' END);
    END LOOP;
END
$$;

-- Grants an existing role the privileges that a service or a reader needs, and revokes all others.
CREATE OR REPLACE FUNCTION let_in(role name, as_what text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    here  constant name := current_schema();
    known record;
BEGIN
    IF as_what NOT IN ('service', 'reader') THEN
        RAISE EXCEPTION 'a role is let in as service or as reader, not as %', as_what
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF role = (SELECT pg_get_userbyid(c.relowner) FROM pg_class c WHERE c.oid = 'events'::regclass) THEN
        RAISE EXCEPTION '% owns the schema, and need not be let in', role
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', here, role);
    FOR known IN
        SELECT c.relname AS name FROM pg_class c
        WHERE c.relnamespace = here::regnamespace AND c.relkind = 'r'
    LOOP
        EXECUTE format('REVOKE ALL ON %I FROM %I', known.name, role);
        IF as_what = 'reader' AND known.name = 'subject_keys' THEN
            CONTINUE;
        END IF;
        EXECUTE format('GRANT SELECT ON %I TO %I', known.name, role);
        IF as_what = 'service' AND known.name IN ('events', 'subject_keys') THEN
            EXECUTE format('GRANT INSERT ON %I TO %I', known.name, role);
        ELSIF as_what = 'service' AND known.name <> 'schema_info' THEN
            EXECUTE format('GRANT INSERT, UPDATE, DELETE ON %I TO %I', known.name, role);
        END IF;
    END LOOP;
END
$$;

SELECT settle_access();


-- @superseded
-- Functions of earlier versions whose arguments or results differ from those of their successors.

DROP FUNCTION IF EXISTS advance_projections(text[], bigint, bigint);
DROP FUNCTION IF EXISTS append_events(bigint, timestamptz, timestamptz, integer, text, text, text, text, text, text,
                                      text, text, text, text, bytea);


-- @upgrade 2
-- Replay beside the live tables, snapshots, sealed payloads, claims of jobs, who removed a job, API keys.

ALTER TABLE projections ADD COLUMN generation bigint NOT NULL DEFAULT 1;

CREATE TABLE snapshots (
    fold      text        NOT NULL,
    position  bigint      NOT NULL CHECK (position > 0),
    state     bytea       NOT NULL,
    taken_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (fold, position)
);

CREATE TABLE subject_keys (
    id          uuid        PRIMARY KEY,
    subject     text,
    key         bytea       NOT NULL CHECK (length(key) = 32),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX subject_keys_subject ON subject_keys (subject) WHERE subject IS NOT NULL;

CREATE TRIGGER events_destroy_keys AFTER INSERT ON events
    FOR EACH ROW WHEN (NEW.type = 'subject_forgotten') EXECUTE FUNCTION destroy_key();

ALTER TABLE jobs ADD COLUMN resources jsonb, ADD COLUMN removed_by text;
ALTER TABLE job_runs ADD COLUMN operation_id uuid;

CREATE INDEX events_by_key ON events ((data #>> '{sealed,key}'))
    WHERE type IN ('email_received', 'email_updated') AND (data #>> '{sealed,key}') IS NOT NULL;

CREATE TABLE api_keys (
    id            text        PRIMARY KEY,
    scope         text        NOT NULL CHECK (scope IN ('agent', 'operator', 'auditor')),
    agent         text,
    note          text,
    digest        text        NOT NULL,
    state         text        NOT NULL CHECK (state IN ('active', 'expired', 'revoked')),
    created_by    text        NOT NULL,
    created_at    timestamptz NOT NULL,
    expires_at    timestamptz,
    first_used_at timestamptz,
    ended_at      timestamptz,
    position      bigint      NOT NULL
);

CREATE TABLE access (
    name           text   PRIMARY KEY,
    unrevoked_keys bigint NOT NULL,
    position       bigint NOT NULL
);


-- @upgrade 3
-- Roles with fewer privileges than the owner; how long an append waited for the log's lock.

REVOKE EXECUTE ON FUNCTION destroy_key() FROM PUBLIC;

SELECT settle_access();


-- @upgrade 4
-- Appending a single event is faster: a function, which every upgrade replaces anyway.


-- @upgrade 5
-- A single event is counted too, and the destruction of a key is checked afterwards: functions. And columns
-- that may have to be forgotten have no statistics any more. Altering a column to the type that it has drops
-- those that exist. This fails for a column that a user's view refers to; such a column stays as it was, because
-- with STATISTICS 0 it would never be analyzed again, and would keep the old ones.

DO $$
DECLARE
    one text[];
BEGIN
    FOREACH one SLICE 1 IN ARRAY ARRAY[
        ['snapshots', 'state', 'bytea'],
        ['subject_keys', 'subject', 'text'],
        ['subject_keys', 'key', 'bytea'],
        ['squad_messages', 'message', 'text'],
        ['squad_messages', 'data', 'jsonb'],
        ['email_logs', 'from_email', 'text'],
        ['email_logs', 'subject', 'text'],
        ['email_logs', 'payload', 'jsonb']
    ] LOOP
        BEGIN
            EXECUTE format('ALTER TABLE %I ALTER COLUMN %I TYPE %s', one[1], one[2], one[3]);
            EXECUTE format('ALTER TABLE %I ALTER COLUMN %I SET STATISTICS 0', one[1], one[2]);
        EXCEPTION WHEN feature_not_supported THEN
            NULL;
        END;
    END LOOP;
END
$$;


-- @upgrade 6
-- Lists filtered by agent, and the list of all runs, read no more rows than they return. And keys are destroyed
-- even if session_replication_role is replica.

CREATE INDEX operations_by_agent ON operations (agent, fencing_token);
CREATE INDEX conflicts_by_agent ON conflicts (agent, position);
CREATE INDEX squad_tasks_by_agent ON squad_tasks (assigned_agent, created_position);
CREATE INDEX email_logs_by_agent ON email_logs (handled_by, created_position);
CREATE INDEX job_runs_by_token ON job_runs (fencing_token);

ALTER TABLE events ENABLE ALWAYS TRIGGER events_destroy_keys;


-- @upgrade 7
-- What tokens were spent on, by model. The projector fills the table from the log.

CREATE TABLE token_usage (
    day           date   NOT NULL,
    agent         text   NOT NULL,
    model         text   NOT NULL,
    tokens        bigint NOT NULL,
    input_tokens  bigint NOT NULL,
    output_tokens bigint NOT NULL,
    position      bigint NOT NULL,
    PRIMARY KEY (day, agent, model)
);

SELECT settle_access();
