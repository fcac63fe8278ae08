//go:build linux && guest

package sgio_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/tape/conform"
	"github.com/holdfast-backup/holdfast/tape/iscsi/tgttest"
	"github.com/holdfast-backup/holdfast/tape/library"
	"github.com/holdfast-backup/holdfast/tape/scsi"
	"github.com/holdfast-backup/holdfast/tape/sgio"
)

// These tests run in the guest of scripts/tape-guest.sh: they log the kernel's own initiator in to tgt, which changes the machine.

var ctx = context.Background()

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// attach logs the kernel in to a library and waits for its device files.
func attach(t *testing.T, lib *tgttest.Library, devices int) {
	t.Helper()
	run(t, "iscsiadm", "-m", "discovery", "-t", "sendtargets", "-p", lib.Portal)
	run(t, "iscsiadm", "-m", "node", "-T", tgttest.Target, "-p", lib.Portal, "--login")
	t.Cleanup(func() {
		run(t, "iscsiadm", "-m", "node", "-T", tgttest.Target, "-p", lib.Portal, "--logout")
		run(t, "iscsiadm", "-m", "node", "-T", tgttest.Target, "-p", lib.Portal, "-o", "delete")
	})
	for range 600 {
		found, err := sgio.List()
		must(t, err)
		n := 0
		for _, f := range found {
			if _, err := os.Stat(f.Path); err == nil && (f.Type == scsi.TypeTape || f.Type == scsi.TypeChanger) {
				n++
			}
		}
		if n == devices {
			return
		}
		c, _ := clock.System.After(100 * time.Millisecond)
		<-c
	}
	t.Fatal("the kernel does not find the devices")
}

// TestTranscriptsThroughTheKernel: the same transcripts as over our own initiator, with the same deviations and those that the kernel adds.
func TestTranscriptsThroughTheKernel(t *testing.T) {
	lib := tgttest.Start(t, tgttest.Options{Drives: 1, Slots: 4, Media: []string{"HF0001L8", "HF0002L8"}})
	attach(t, lib, 2)
	u, err := library.Find(ctx, "sg:all", library.Options{})
	must(t, err)
	var rig conform.Rig
	for _, x := range u.List {
		t.Logf("%s: type %d, %s %s, serial %s", x.Place, x.Type, x.Vendor, x.Product, x.Serial)
		if x.Type == scsi.TypeTape {
			rig.Tape = x.Transport
		} else {
			rig.Changer = x.Transport
		}
	}
	rig.Drive, rig.Slot, rig.Other, rig.Hole = tgttest.AddrDrive, tgttest.AddrSlot, tgttest.AddrSlot+1, tgttest.AddrHole
	known := conform.Deviations{}
	for k, v := range tgttest.Deviations {
		known[k] = v
	}
	known["lengths/9"] = struct{ Answer, Why string }{"no sense 00/00 ILI -40 60B", "tgt sends no data, and what the driver's buffer held before is still in it"}
	conform.Run(ctx, t, rig, known)
	must(t, u.Close())
}

// TestALibraryThroughTheKernel: blocks up to the largest come back, with drives that were found by the changer's serial number.
func TestALibraryThroughTheKernel(t *testing.T) {
	lib := tgttest.Start(t, tgttest.Options{Drives: 2, Slots: 4, Media: []string{"HF0001L8", "HF0002L8"}})
	attach(t, lib, 3)
	u, err := library.Find(ctx, "sg:all", library.Options{})
	must(t, err)
	address := ""
	for _, x := range u.List {
		if x.Type == scsi.TypeChanger {
			address = "sg:serial:" + x.Serial
		}
	}
	must(t, u.Close())
	l, err := library.Open(ctx, address, library.Options{Log: t.Logf})
	must(t, err)
	if len(l.Bays()) != 2 {
		t.Fatalf("%s: %+v", address, l.Bays())
	}
	rng := rand.New(rand.NewPCG(5, 6))
	for _, b := range l.Bays() {
		must(t, l.Changer().Load(ctx, "HF0001L8", b.Element))
		h, err := l.Take(ctx, b.Element)
		must(t, err)
		must(t, h.Drive.Ready(ctx))
		t.Logf("%s: %+v", b.Place, h.Drive.Capabilities())
		var blocks [][]byte
		for _, n := range []int{1, 511, 4096, 65537, 300001, 512 << 10, 1 << 20} {
			p := make([]byte, n)
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			blocks = append(blocks, p)
			must(t, h.Drive.Write(ctx, p))
		}
		must(t, h.Drive.Flush(ctx, 1))
		must(t, h.Drive.Rewind(ctx))
		got := make([]byte, 1<<20)
		for _, p := range blocks {
			if n, err := h.Drive.Read(ctx, got); err != nil || !bytes.Equal(got[:n], p) {
				t.Errorf("%s: a block of %d bytes came back with %d: %v", b.Place, len(p), n, err)
			}
		}
		must(t, h.Drive.Unload(ctx))
		must(t, h.Release(ctx))
		_, err = l.Changer().Unload(ctx, b.Element)
		must(t, err)
	}
	must(t, l.Close(ctx))
}
