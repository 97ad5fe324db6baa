-- Frozen once merged: a change is a new file.
-- Only jobs that go on are read at a start; what evaluators measured is told by the events of a job alone.

ALTER TABLE jobs ADD COLUMN ended INTEGER NOT NULL DEFAULT 0 CHECK (ended IN (0, 1));
UPDATE jobs SET ended = 1 WHERE status IN ('completed', 'budget-spent', 'cancelled', 'failed');
CREATE INDEX jobs_open ON jobs (created_unix_s, id) WHERE ended = 0;

DROP TABLE evaluations;
