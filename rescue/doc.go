// Package rescue reads backup sets out of what a pool left on disks or in buckets, when nothing else is left: no daemon, no catalog, no index,
// and for folders no network. It is a second implementation of the formats in docs/formats (recipe.md, standard.md, keys.md, stripe.md) from their
// documents, above the container reader; if a document does not suffice, the document is wrong.
//
// It owns nothing and never writes to a pool, takes no lock, and may run beside a daemon that has the pool open: a set that is deleted meanwhile is
// then reported as damaged. Every byte that it hands out was checked against its digest. What cannot be read is named: the object, and the
// bytes of the disk that were in it.
//
// Memory: about 100 bytes for each distinct chunk of the one disk that is restored, and some footers.
//
// It imports the ground floor, container, seal, the blob stores, the stripe and chunk decoding, and must not import pools, drivers of pools, ingest or the catalog.
package rescue
