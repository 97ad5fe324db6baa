-- Frozen once merged: a change is a new file.
-- One ledger for the population of the deployment, a chain of lines that is only ever added to.

CREATE TABLE privacy_ledger (
    seq      INTEGER NOT NULL PRIMARY KEY,
    document TEXT    NOT NULL
) STRICT;

CREATE TRIGGER privacy_ledger_keeps_lines BEFORE UPDATE ON privacy_ledger
BEGIN SELECT RAISE (ABORT, 'the privacy ledger is only added to'); END;
CREATE TRIGGER privacy_ledger_loses_none BEFORE DELETE ON privacy_ledger
BEGIN SELECT RAISE (ABORT, 'the privacy ledger is only added to'); END;

-- What was spent before is in no chain: jobs that were under way must not go on as if nothing had been. Their lines stay.
UPDATE jobs SET ended = 1, status = 'failed' WHERE ended = 0 AND id IN (SELECT job FROM ledger);
ALTER TABLE ledger RENAME TO ledger_before_chain;
