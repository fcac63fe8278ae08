//go:build !linux

package sgio

import (
	"context"
	"runtime"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// A Device is an open device file; there are none on this system.
type Device struct{}

func unsupported() error {
	return holdfast.Errorf(holdfast.Unsupported, op, "SCSI device files are Linux's; this is %s", runtime.GOOS).Advise("reach the library over iSCSI")
}

// Open is Unsupported on this system.
func Open(string) (*Device, error) { return nil, unsupported() }

// List is Unsupported on this system.
func List() ([]Found, error) { return nil, unsupported() }

// Exec is Unsupported on this system.
func (*Device) Exec(context.Context, scsi.Command) (scsi.Result, error) {
	return scsi.Result{}, unsupported()
}

// Close does nothing.
func (*Device) Close() error { return nil }
