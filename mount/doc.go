// Package mount makes the disks of a backup set usable where they are, without a restore: Disk reads any byte of a disk at random, Overlay
// lets a client write over it into a file that is thrown away, and Files shows disks as files of a folder (Linux, by FUSE).
//
// It owns the cache, the read-ahead and the check of what comes: a byte that was not verified against its digest is never handed out, and
// where the map of the disk is known exactly, a piece that came with fewer bytes than the map says is an error and not zeros. It knows neither
// pools nor the daemon: bytes come from a Source. Memory is bounded by Options.Cache and by what is under way.
//
// It keeps nothing. After a crash there is nothing to recover: an overlay's file has no name while it is used (where the system allows that),
// and a folder that a killed process left mounted is given back by Release. It imports the root, ingest/chunk and go-fuse, whose home it is.
package mount
