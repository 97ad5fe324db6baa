-- Frozen once merged: a change is a new file.
-- What a client claimed of an accepted update, as a digest: whoever asks for a receipt that was lost is answered by it, also
-- when the update itself is long deleted. Rows from before have none.

ALTER TABLE uploads ADD COLUMN claim TEXT;
