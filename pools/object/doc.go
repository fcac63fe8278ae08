// Package object is the pool driver that keeps sets in a bucket: the engine of pools/dedup over pools/blob/s3store.
//
// It owns the bucket's prefix: what the engine stores there (docs/formats/object.md) and the object "lease", by which one appliance at a time
// owns the pool. A lease is written by conditional PUT, renewed, and numbered: its generation is the upper half of every container's id. While
// the lease is not known to be ours nothing is written or removed; reading goes on.
//
// On a crash: as for any dedup pool. Everything true is in the bucket; what lies in Env.StateDir (index, spilled objects, the appliance's name
// to the lease) can be lost at any time. Collect removes an object only when two Collects in a row, with a listing each, found
// nothing that needs it. It must not import other drivers' internals or the catalog.
package object
