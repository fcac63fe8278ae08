// Package pooltest is the law of the Pool interface as a program: the checks that every driver passes.
//
// Run runs the named checks, each on a pool of its own. RunHistories runs random histories of backups, deletions, collections,
// restarts and restores on several pools and compares every restore with a model. RunCrashes stops a history at its sync
// points and looks at what a power cut would have left.
//
// The package is used by drivers' tests and by the daemon, which can check a real storage target in a scratch area of it
// (never over live sets). It therefore knows nothing of package testing: it reports to a T of its own, which *testing.T
// satisfies. There is nothing to skip: what a pool cannot do is declared in its Traits, and then the checks assert that.
//
// It writes nothing but to the pools it is handed. It must not import any driver.
package pooltest
