// Package dedup is the pool driver that stores every chunk once.
//
// Chunks rest in containers (pools/container); what a disk holds is a recipe, a Merkle tree of references to chunks whose nodes
// are chunks themselves (docs/formats/recipe.md), so that sets share what did not change; a set record names the roots and is the
// commit. Everything else is rebuildable: the index of chunks lives in memory and is loaded from the kv folder, or from the
// containers' footers where that is lost.
//
// On a crash: a set whose Commit returned is there, whole; one whose Commit did not return is there whole or not at all;
// nothing that a committed set needs is ever removed. The order is data containers sealed, node containers sealed, set record.
// Space is given back by Collect, mark and sweep with condemn-first (docs/design/0003-gc.md); who waits for whom is
// in docs/locking.md. Damage that a read or Verify finds takes the chunk out of deduplication at once, so that the next backup
// stores it anew.
//
// The engine keeps everything that is true in a blob.Store (OpenStore), so that other drivers can run it on theirs; the driver of this package gives
// it a folder (OpenOn, layout.go). It must not import other drivers or the catalog.
package dedup
