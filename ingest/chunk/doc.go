// Package chunk turns runs of disk bytes into chunks and compression groups, and groups back into bytes.
//
// It owns where a disk is cut (Cutter, Splitter, PartitionStarts), how chunks are collected into groups (Builder) and how groups are
// encoded and decoded (Encoder, Decoder). Cut positions are part of what makes two backups of the same bytes share chunks: for
// a given holdfast.Chunking they never change from version to version (golden test), and they do not depend on how a run was
// divided into buffers. docs/design/0001-cutting.md has the reasons and the measurements.
//
// The package keeps no state outside its values, does no I/O of its own, promises nothing across a crash, and imports only the
// root and the libraries whose home it is (klauspost/compress, restic/chunker, xxhash).
package chunk
