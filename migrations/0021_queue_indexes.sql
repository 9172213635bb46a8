-- The next job is the first of this index, however many wait.
DROP INDEX jobs_by_state;
CREATE INDEX jobs_in_line ON jobs (state, priority DESC, id);

-- Who was promised room; jobs that have ended are promised none.
UPDATE jobs SET reserved_bytes = 0 WHERE state NOT IN ('queued', 'running');
CREATE INDEX jobs_with_room ON jobs (pool) WHERE reserved_bytes > 0;

-- Whether somebody changes an image that many read.
CREATE INDEX image_locks_by_mode ON image_locks (image_id, mode);

-- What happened to an image; there is one for jobs already.
CREATE INDEX events_by_image ON events (image_id, seq);
