// Package e2e holds the end-to-end tests: they build the real programs, start them on loopback, let foreign programs (qemu-io,
// qemu-img, nbdcopy) write and judge the disks, kill what is to be killed with signal 9, and compare every restored byte.
//
// Counts are those of the acceptance list; HOLDFAST_SOAK=n multiplies them. Seeds are printed and set by HOLDFAST_SEED.
package e2e
