-- Frozen once merged: a change is a new file.
-- Digests are 64 hex digits, times are Unix time, documents are JSON that only the programs above read.

CREATE TABLE tokens (
    id             TEXT    NOT NULL PRIMARY KEY,
    secret_digest  TEXT    NOT NULL UNIQUE,
    role           TEXT    NOT NULL,
    name           TEXT,
    uses_left      INTEGER NOT NULL CHECK (uses_left BETWEEN 0 AND max_uses),
    max_uses       INTEGER NOT NULL,
    expires_unix_s INTEGER NOT NULL,
    created_unix_s INTEGER NOT NULL
) STRICT;

-- token_id is no foreign key: a token may be deleted, its clients stay.
CREATE TABLE clients (
    id                 TEXT    NOT NULL PRIMARY KEY,
    role               TEXT    NOT NULL,
    key_digest         TEXT    NOT NULL,
    certificate_serial TEXT    NOT NULL,
    enrolled_unix_s    INTEGER NOT NULL,
    last_seen_unix_s   INTEGER,
    software           TEXT    NOT NULL,
    token_id           TEXT    NOT NULL,
    UNIQUE (token_id, key_digest)
) STRICT;

CREATE TABLE jobs (
    id              TEXT    NOT NULL PRIMARY KEY,
    document        TEXT    NOT NULL,
    document_digest TEXT    NOT NULL,
    version         INTEGER NOT NULL,
    status          TEXT    NOT NULL,
    state           TEXT    NOT NULL,
    created_unix_s  INTEGER NOT NULL
) STRICT;

CREATE TABLE events (
    job      TEXT    NOT NULL REFERENCES jobs (id),
    seq      INTEGER NOT NULL,
    unix_ms  INTEGER NOT NULL,
    document TEXT    NOT NULL,
    PRIMARY KEY (job, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE ledger (
    job      TEXT    NOT NULL REFERENCES jobs (id),
    seq      INTEGER NOT NULL,
    document TEXT    NOT NULL,
    PRIMARY KEY (job, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE uploads (
    job     TEXT    NOT NULL REFERENCES jobs (id),
    round   INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    client  TEXT    NOT NULL,
    blob    TEXT    NOT NULL,
    bytes   INTEGER NOT NULL,
    weight  INTEGER NOT NULL,
    PRIMARY KEY (job, round, attempt, client)
) STRICT, WITHOUT ROWID;

CREATE TABLE releases (
    job      TEXT    NOT NULL REFERENCES jobs (id),
    round    INTEGER NOT NULL,
    model    TEXT    NOT NULL,
    bytes    INTEGER NOT NULL,
    unix_ms  INTEGER NOT NULL,
    document TEXT    NOT NULL,
    PRIMARY KEY (job, round)
) STRICT, WITHOUT ROWID;

CREATE TABLE evaluations (
    job       TEXT    NOT NULL REFERENCES jobs (id),
    round     INTEGER NOT NULL,
    evaluator TEXT    NOT NULL,
    model     TEXT    NOT NULL,
    document  TEXT    NOT NULL,
    unix_ms   INTEGER NOT NULL,
    PRIMARY KEY (job, round, evaluator)
) STRICT, WITHOUT ROWID;
