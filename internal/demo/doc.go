// Package demo is the whole product at work in one process and one temporary folder: an appliance, an agent and a lab host, a virtual
// machine that is backed up, changed, backed up again, cloned, restored and compared byte by byte.
//
// It owns its temporary folder and removes it however the demo ends, unless the process is killed. It is for people who want to see, and
// is built from the same packages as the programs; nothing of the product imports it but the command line.
package demo
