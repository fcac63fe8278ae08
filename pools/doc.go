// Package pools, for those who write a driver.
//
// A driver is a package on the floor of drivers with a function Driver() that returns a Driver value; appliance/drivers.go lists
// it. pools/memory is the shortest one that is right, and the first to read. What a driver has to do, in the order in which
// it is best written:
//
//   - Create writes a superblock with the pool's id, its Chunking and a random Domain key; Open checks the id, takes a lock that
//     goes with the process, and aborts whatever sessions a crash left. Traits answers from memory.
//   - Session and DiskWriter take chunks (Put) and refs (Place). CheckRefs has the rules for refs; chunks need a rule of the
//     driver's own for which ones a session may name: those it put, and those that Missing answered as present. Both stay until the
//     session ends, whatever is deleted and collected meanwhile. A chunk may have any length up to holdfast.MaxChunk: the
//     declared Chunking is a wish to agents, and copies from other pools do not follow it.
//   - Commit checks the final manifest with SameSet, makes data durable before what names it, and has one step after which the
//     set is there: a rename followed by a sync of the folder, a synced batch, a mark on a medium. The disks' maps are complete
//     then: ranges not placed are taken over from the parent where Disk.Inherit is set and are zeros elsewhere. No set ever
//     depends on another one. CutRef helps where a placed ref covers a part of an inherited one.
//   - Set.Map and Set.Read answer from that map. Read plans in the order that suits the medium, delivers whole groups with all
//     wanted places in them, and keeps a bounded number of parcels out; it never waits for a parcel that the receiver cannot release
//     before the next one comes, which means a bound well above the workers of ReadDisk (one per processor) and one more.
//   - Delete makes a set invisible, durably, and leaves the space to Collect. Collect keeps what committed sets, open sets, sessions
//     and parents of sessions need, and stops with an error where it cannot read what it has to know.
//   - Verify, if the driver can do better than VerifyByReading. Every Damage names the set, its VM, the disk and the extents.
//
// Every error has a Kind, set where it is first known: Exist and NotExist for ids, Invalid for requests that stay wrong, Corrupt for
// stored bytes, NoSpace, Offline, Busy, and Cancelled as soon as the context has ended. A method that was cancelled has had no
// effect, except that a Commit that fails, for whatever reason, has aborted its session. Places that are given a context look at it
// before they begin, too.
//
// A driver is done when its tests run pooltest.Run, pooltest.RunHistory beside the memory driver, and, where it keeps
// files, pooltest.RunCrashes with a thousand points. docs/design/0002-pool-interface.md says why the interface is as it is.
//
// Package pools imports ingest/chunk for decoding and encoding groups, and must import neither a driver nor the catalog. It keeps
// nothing: after a crash, a Copy that was under way is a session that dst aborts, and nothing else.
package pools
