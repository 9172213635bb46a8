use crate::model::text_enum;

text_enum! {
    /// A durable step of the service: a transaction, a change in a pool's folder, a change of an image's bytes.
    #[derive(PartialOrd, Ord)]
    Step, "step" {
        /// A job is queued, its images locked, its new image reserved.
        EnqueueJob = "job.enqueue",
        /// A worker takes a job.
        ClaimJob = "job.claim",
        /// A worker makes sure that a job is still its own.
        RenewLease = "job.renew_lease",
        /// The supervisor renews the lease and writes the progress.
        Heartbeat = "job.heartbeat",
        /// What an image looks like is open while it is changed.
        PrepareChanges = "job.prepare_changes",
        /// What a change came to that nobody goes on with.
        CloseChanges = "image.close_changes",
        /// A line of a job's log.
        NoteStep = "job.note_step",
        /// What the next attempt can go on with.
        WriteJournal = "job.write_journal",
        /// Room for a new file.
        ReserveSpace = "job.reserve_space",
        /// A job ends well, with its effects.
        SucceedJob = "job.succeed",
        /// A job ends otherwise.
        EndJob = "job.end",
        /// A job goes back to the queue.
        HandBackJob = "job.hand_back",
        /// Cancel, pause, resume, rate limit, priority.
        SteerJob = "job.steer",
        /// An image's name is reserved for a request that makes it.
        ReserveImage = "image.reserve",
        /// A new image is on record.
        RecordImage = "image.record",
        /// A reservation is undone.
        ForgetImage = "image.forget",
        /// Name, labels, protection, secrets.
        UpdateImage = "image.update",
        /// An image is locked to be deleted.
        BeginDelete = "image.begin_delete",
        /// An image is off the record.
        RecordDelete = "image.record_delete",
        /// An image is locked for a change of its snapshots.
        BeginSnapshot = "snapshot.begin",
        /// A change of snapshots is on record.
        RecordSnapshot = "snapshot.record",
        /// An upload is on record.
        StartUpload = "upload.start",
        /// An image is locked for a part of its file.
        LockUpload = "upload.lock",
        /// The file that parts are appended to is opened and cut to where the part starts.
        OpenUpload = "upload.open",
        /// A part is stable.
        SettleUpload = "upload.settle",
        /// How far an upload is.
        NoteUpload = "upload.note",
        /// A complete file gets its name.
        ShowUpload = "upload.show",
        /// A complete file is an image.
        RecordUpload = "upload.record",
        /// A refused file gets its hidden name back.
        HideUpload = "upload.hide",
        /// A file that was damaged on its way is to come once more.
        RestartUpload = "upload.restart",
        /// A complete file was refused.
        RefuseUpload = "upload.refuse",
        /// A request takes locks.
        TakeLocks = "locks.take",
        /// A request lets locks go.
        ReleaseLocks = "locks.release",
        /// A new file is there under its temporary name.
        StageFile = "file.stage",
        /// A new file is an empty image.
        FormatFile = "file.format",
        /// A complete file gets its name.
        PublishFile = "file.publish",
        /// A complete file takes the place of another.
        ReplaceFile = "file.replace",
        /// A file is put aside before its record goes.
        PutAside = "file.put_aside",
        /// A file that was put aside comes back.
        BringBack = "file.bring_back",
        /// A file that has its name but no record goes back to its temporary name.
        Unpublish = "file.unpublish",
        /// A file that was put aside goes.
        RemoveTrash = "file.remove_trash",
        /// An unfinished file goes.
        RemoveStaged = "file.remove_staged",
        /// The file of an upload goes.
        RemoveUpload = "file.remove_upload",
        /// A file under its own name goes.
        RemoveFile = "file.remove",
        /// Bytes of an image.
        WriteBytes = "bytes.write",
        /// Zeroes of an image.
        WriteZeroes = "bytes.zero",
        /// Space of an image is given back.
        DiscardBytes = "bytes.discard",
        /// The length of an image's file.
        SetLength = "bytes.set_length",
        /// Space of an image is reserved.
        AllocateBytes = "bytes.allocate",
        /// What was written is stable.
        FlushBytes = "bytes.flush",
        /// Secrets are sealed and stored, for the first time or under another key.
        CreateSecret = "secret.create",
        /// A secret goes.
        DeleteSecret = "secret.delete",
        /// The master key is made, or the next one becomes the one that seals.
        MakeMasterKey = "secret.make_master_key",
        /// A webhook is stored.
        CreateWebhook = "webhook.create",
        /// A webhook goes.
        DeleteWebhook = "webhook.delete",
        /// A process takes a webhook.
        ClaimWebhook = "webhook.claim",
        /// An event is sent.
        SendEvent = "webhook.send",
        /// What was delivered.
        NoteDelivery = "webhook.note_delivery",
        /// What was not delivered.
        NoteFailure = "webhook.note_failure",
        /// A token is stored.
        CreateToken = "token.create",
        /// A token goes.
        RevokeToken = "token.revoke",
        /// Entries of the audit log.
        WriteAudit = "audit.write",
        /// At the start: dead jobs can be claimed, dead requests hold nothing.
        ExpireLeases = "start.expire_leases",
        /// At the start: what a dead request had reserved goes.
        DropReservation = "start.drop_reservation",
        /// At the start: an image's file is gone, or there again.
        NoteMissing = "start.note_missing",
        /// Locks of requests are renewed, old events forgotten.
        KeepHouse = "housekeeping",
    }
}
