-- Frozen once merged: a change is a new file.
-- Who may do what nobody else does meanwhile.

CREATE TABLE leases (
    name       TEXT    NOT NULL PRIMARY KEY,
    holder     TEXT    NOT NULL,
    number     INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT;

-- What a database is told once: whose it is, and where its blobs are.
CREATE TABLE deployment (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- What ran before kept its blobs in the folder of this file.
INSERT INTO deployment (name, value) SELECT 'blobs', 'the folder beside it' WHERE EXISTS (SELECT 1 FROM jobs);
