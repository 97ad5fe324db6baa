-- Frozen once merged: a change is a new file.
-- Digests are 64 hex digits, times are Unix time, documents are JSON that only the programs above read. Names sort by their
-- bytes, as everywhere else, whatever the database's language.

CREATE TABLE tokens (
    id             TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    secret_digest  TEXT   COLLATE "C" NOT NULL UNIQUE,
    role           TEXT   NOT NULL,
    name           TEXT   COLLATE "C",
    uses_left      BIGINT NOT NULL CHECK (uses_left BETWEEN 0 AND max_uses),
    max_uses       BIGINT NOT NULL,
    expires_unix_s BIGINT NOT NULL,
    created_unix_s BIGINT NOT NULL
);

-- token_id is no foreign key: a token may be deleted, its clients stay.
CREATE TABLE clients (
    id                 TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    role               TEXT   NOT NULL,
    key_digest         TEXT   COLLATE "C" NOT NULL,
    certificate_serial TEXT   NOT NULL,
    enrolled_unix_s    BIGINT NOT NULL,
    last_seen_unix_s   BIGINT,
    software           TEXT   NOT NULL,
    token_id           TEXT   COLLATE "C" NOT NULL,
    UNIQUE (token_id, key_digest)
);

CREATE TABLE jobs (
    id              TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    document        TEXT   NOT NULL,
    document_digest TEXT   NOT NULL,
    version         BIGINT NOT NULL,
    status          TEXT   NOT NULL,
    ended           BIGINT NOT NULL CHECK (ended IN (0, 1)),
    state           TEXT   NOT NULL,
    created_unix_s  BIGINT NOT NULL
);
CREATE INDEX jobs_open ON jobs (created_unix_s, id) WHERE ended = 0;

CREATE TABLE events (
    job      TEXT   COLLATE "C" NOT NULL REFERENCES jobs (id),
    seq      BIGINT NOT NULL,
    unix_ms  BIGINT NOT NULL,
    document TEXT   NOT NULL,
    PRIMARY KEY (job, seq)
);

CREATE TABLE uploads (
    job     TEXT   COLLATE "C" NOT NULL REFERENCES jobs (id),
    round   BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    client  TEXT   COLLATE "C" NOT NULL,
    blob    TEXT   COLLATE "C" NOT NULL,
    bytes   BIGINT NOT NULL,
    weight  BIGINT NOT NULL,
    claim   TEXT,
    PRIMARY KEY (job, round, attempt, client)
);

CREATE TABLE releases (
    job      TEXT   COLLATE "C" NOT NULL REFERENCES jobs (id),
    round    BIGINT NOT NULL,
    model    TEXT   COLLATE "C" NOT NULL,
    bytes    BIGINT NOT NULL,
    unix_ms  BIGINT NOT NULL,
    document TEXT   NOT NULL,
    PRIMARY KEY (job, round)
);

-- Who may do what nobody else does meanwhile, by the clock of this database.
CREATE TABLE leases (
    name       TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    holder     TEXT   COLLATE "C" NOT NULL,
    number     BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL
);

-- What a database is told once: whose it is, and where its blobs are.
CREATE TABLE deployment (
    name  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

-- One ledger for the population of the deployment, a chain of lines that is only ever added to.
CREATE TABLE privacy_ledger (
    seq      BIGINT NOT NULL PRIMARY KEY,
    document TEXT   NOT NULL
);

CREATE FUNCTION privacy_ledger_is_only_added_to() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the privacy ledger is only added to';
END $$;
CREATE TRIGGER privacy_ledger_keeps_lines BEFORE UPDATE OR DELETE OR TRUNCATE ON privacy_ledger
    FOR EACH STATEMENT EXECUTE FUNCTION privacy_ledger_is_only_added_to();

-- What coordinators that share this database tell each other. Nothing here has to last: who connects again is told again.

-- Who is connected to which of them. A coordinator that is gone (its lease "replica/NAME" has run out) has nobody.
CREATE TABLE sessions (
    client  TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    role    TEXT   NOT NULL,
    replica TEXT   COLLATE "C" NOT NULL,
    number  BIGINT NOT NULL
);
CREATE INDEX sessions_of ON sessions (replica);

-- What a job's driver has for a participant that is connected elsewhere. The job had this version when it was written.
CREATE TABLE mail (
    id      BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    replica TEXT   COLLATE "C" NOT NULL,
    client  TEXT   COLLATE "C" NOT NULL,
    job     TEXT   COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    message TEXT   NOT NULL
);
CREATE INDEX mail_of ON mail (replica, id);

-- What came for a job at a coordinator that does not drive it, and what became of it.
CREATE TABLE inbox (
    id       BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job      TEXT   COLLATE "C" NOT NULL,
    replica  TEXT   COLLATE "C" NOT NULL,
    asked_ms BIGINT NOT NULL,
    input    TEXT   NOT NULL,
    answer   TEXT
);
CREATE INDEX inbox_open ON inbox (job, id) WHERE answer IS NULL;
CREATE INDEX inbox_answered ON inbox (replica, id) WHERE answer IS NOT NULL;

-- Sums of those updates of a round that one coordinator has at hand, for the one that releases it.
CREATE TABLE partial_sums (
    job      TEXT   COLLATE "C" NOT NULL,
    round    BIGINT NOT NULL,
    attempt  BIGINT NOT NULL,
    replica  TEXT   COLLATE "C" NOT NULL,
    begun_ms BIGINT NOT NULL,
    -- Nothing while it is being made; then the file of the sum, or none if there was nothing to sum.
    made     BIGINT NOT NULL CHECK (made IN (0, 1)),
    blob     TEXT   COLLATE "C",
    bytes    BIGINT,
    PRIMARY KEY (job, round, attempt, replica)
);

-- What a job's driver says of it besides: why it stands still, or what it waits for. Nothing: all is well.
CREATE TABLE standings (
    job       TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    halted    TEXT,
    waits_for TEXT
);
