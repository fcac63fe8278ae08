// Package nbd serves disks over the Network Block Device protocol: fixed newstyle negotiation with structured replies and the
// base:allocation context, as docs/formats/nbd.md describes. Any NBD client can be at the other end: qemu, nbdcopy, the
// kernel's nbd driver, a booted guest.
//
// It owns the protocol and nothing else: bytes come from and go to a Backend. It promises that a reply to a write is sent
// only after Backend.WriteAt returned, and a reply to a flush or to a write with FUA only after Backend.Flush returned; so
// what survives a crash is what the Backend says survives. Nothing a client sends makes it allocate more than
// maxRequestBytes for one request and maxInflightBytes for one connection.
//
// It is on floor 1: it imports the root package and the clock only.
package nbd
