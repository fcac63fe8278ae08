// Package tape measures writing sealed containers to tape: against an emulated drive that is as slow as an LTO-9 one, against one that takes
// everything, and against another implementation's virtual library next to a bare loop of writes. make bench-tape runs it; see bench/README.md.
package tape
