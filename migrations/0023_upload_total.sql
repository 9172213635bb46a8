-- The length of the whole file, announced with a part of an upload.
ALTER TABLE images ADD COLUMN upload_total BIGINT;
