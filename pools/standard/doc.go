// Package standard is the pool for plain folders: every backup set has a folder of its own that an admin can find and
// understand, sets share nothing but what an increment inherits, and deleting a set gives its space back at once.
//
// It owns the layout vms/VM/SET/ on one or several blob stores ("paths"), each with a quota: a set record, a map for each disk,
// and numbered data files, which are containers (pools/container). A map says for every byte of its disk which chunks of which
// data files hold it, those of earlier sets included, so that no set is ever read through another one. A data file lives until
// no set's map names it. docs/formats/standard.md is the format.
//
// Promises on a crash: the set record is written last and is the commit; a set whose Commit returned is there, whole, and one whose
// record was not written leaves garbage that the next Open removes. Delete removes the record first. Nothing is removed unless every
// set record could be read and every path is there: an unreadable record costs space, never data.
//
// What is kept in memory grows with the number of data files (about 250 bytes each), not with the sets' bytes: records are
// read when something needs them (a delete, a collect, usage), maps are streamed.
//
// It must not import other drivers, nor anything above the floor of pools.
package standard
