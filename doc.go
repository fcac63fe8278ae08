// Package holdfast is the ground floor of the house: the words every other package speaks.
//
// It owns identifiers, extents, chunks and their digests, the manifest of a backup set, the kinds of errors, typed
// events and the meters of a job. It does no I/O, reads no clock.
//
// The floors above it, from the bottom up (floors_test.go checks that imports only run downward):
//
//	fsys, kv, nbd, ingest/wire, ingest/chunk, agent/vhdx, agent/hv   formats, media and wires
//	pools, catalog                                                  what a pool is; what the appliance remembers
//	pools/memory, pools/dedup, pools/pooltest, agent/lab            drivers
//	ingest, agent                                                   the two ends of the data's way
//	appliance/...                                                   jobs, API, assembly
//	cmd/..., bench                                                  programs
package holdfast
