-- The SHA-256 (hexadecimal) of the whole file, announced with a part of an upload.
ALTER TABLE images ADD COLUMN upload_sha256 TEXT;
