//! Inventory, pools, leases, job queue and workers of vdiskd.
