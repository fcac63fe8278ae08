// Package tgttest runs Debian's tgt as a virtual tape library on the loopback interface, for tests: a target that other people wrote. Each
// Library is a process of its own with a control channel of its own, and ends with its test.
//
// tgt is no specification: what it does wrongly is on the list Deviations.
package tgttest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/tape/iscsi"
)

// Addresses of the elements.
const (
	AddrDrive  = 1
	AddrRobot  = 16
	AddrExport = 768
	AddrSlot   = 1024
	AddrHole   = 5000
)

// Target is the library's name; drives are logical units from 1 on, the changer comes after them.
const Target = "iqn.2024-01.test.holdfast:library"

// Options says what a library has.
type Options struct {
	Drives, Slots int
	Media         []string // bar codes, in slots from the first on
	MiB           int      // capacity of each
	User, Secret  string   // CHAP
	Digests       bool     // checksums, which it does only when told
	// TargetUser and TargetSecret have the target prove itself.
	TargetUser, TargetSecret string
}

// A Library is a running tgt.
type Library struct {
	Portal string
	Dir    string // of the cartridges' files
	o      Options
	t      testing.TB
	ctl    string
	cmd    *exec.Cmd
}

var serial atomic.Int64

// Start starts a library and stops it when the test ends.
func Start(t testing.TB, o Options) *Library {
	t.Helper()
	dir, err := os.MkdirTemp("", "hftgt") // a media file's path must stay below 128 characters
	if err != nil {
		t.Fatal(err)
	}
	l := &Library{Dir: dir, o: o, t: t, ctl: strconv.Itoa(1000 + (os.Getpid()*8+int(serial.Add(1)))%31000)}
	t.Cleanup(func() {
		l.Kill()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for _, m := range o.Media {
		l.run("tgtimg", "--op", "new", "--device-type", "tape", "--barcode", m, "--size", strconv.Itoa(max(o.MiB, 64)), "--type", "data", "--file", filepath.Join(dir, m))
	}
	if err := os.WriteFile(filepath.Join(dir, "smc"), make([]byte, 1024), 0o600); err != nil {
		t.Fatal(err)
	}
	l.Up()
	return l
}

// program finds a program of tgt, which lives where not every PATH looks.
func program(name string) string {
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	return filepath.Join("/usr/sbin", name)
}

func (l *Library) run(name string, args ...string) {
	l.t.Helper()
	if out, err := exec.Command(program(name), args...).CombinedOutput(); err != nil {
		l.t.Fatalf("%s %s: %v\n%s\nscripts/deps.sh installs what the tests need", name, strings.Join(args, " "), err, out)
	}
}

func (l *Library) adm(args string) {
	l.t.Helper()
	l.run("tgtadm", append([]string{"-C", l.ctl, "--lld", "iscsi"}, strings.Fields(args)...)...)
}

// Up starts the process, again after Kill: the changer then has every cartridge in its first place.
func (l *Library) Up() {
	l.t.Helper()
	if l.Portal == "" {
		free, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			l.t.Fatal(err)
		}
		l.Portal = free.Addr().String()
		if err := free.Close(); err != nil {
			l.t.Fatal(err)
		}
	}
	var log bytes.Buffer
	l.cmd = exec.Command(program("tgtd"), "-f", "-C", l.ctl, "--iscsi", "portal="+l.Portal)
	l.cmd.Stdout, l.cmd.Stderr = &log, &log
	if err := l.cmd.Start(); err != nil {
		l.t.Fatalf("%v; scripts/deps.sh installs what the tests need", err)
	}
	for i := 0; ; i++ { // until it listens
		if exec.Command(program("tgtadm"), "-C", l.ctl, "--lld", "iscsi", "--mode", "system", "--op", "show").Run() == nil {
			break
		}
		if i == 200 {
			l.Kill()
			l.t.Fatalf("tgtd does not come up:\n%s", log.String())
		}
		c, _ := clock.System.After(25 * time.Millisecond)
		<-c
	}
	l.adm("--mode target --op new --tid 1 -T " + Target)
	if l.o.Digests {
		l.adm("--mode target --op update --tid 1 --name HeaderDigest --value CRC32C")
		l.adm("--mode target --op update --tid 1 --name DataDigest --value CRC32C")
	}
	for i := range l.o.Drives {
		l.adm(fmt.Sprintf("--mode logicalunit --op new --tid 1 --lun %d -b %s/%s --device-type=tape", i+1, l.Dir, l.o.Media[0]))
		l.adm(fmt.Sprintf("--mode logicalunit --op update --tid 1 --lun %d --params online=0", i+1))
	}
	c := fmt.Sprintf("--mode logicalunit --op update --tid 1 --lun %d --params ", l.ChangerLUN())
	l.adm(fmt.Sprintf("--mode logicalunit --op new --tid 1 --lun %d -b %s/smc --device-type=changer", l.ChangerLUN(), l.Dir))
	l.adm(c + "media_home=" + l.Dir)
	l.adm(c + fmt.Sprintf("element_type=4,start_address=%d,quantity=%d", AddrDrive, l.o.Drives))
	for i := range l.o.Drives {
		l.adm(c + fmt.Sprintf("element_type=4,address=%d,tid=1,lun=%d", AddrDrive+i, i+1))
	}
	l.adm(c + fmt.Sprintf("element_type=1,start_address=%d,quantity=1", AddrRobot))
	l.adm(c + fmt.Sprintf("element_type=2,start_address=%d,quantity=%d", AddrSlot, l.o.Slots))
	l.adm(c + fmt.Sprintf("element_type=3,start_address=%d,quantity=1", AddrExport))
	for i, m := range l.o.Media {
		l.adm(c + fmt.Sprintf("element_type=2,address=%d,barcode=%s,sides=1", AddrSlot+i, m))
	}
	if l.o.User != "" {
		l.adm("--mode account --op new --user " + l.o.User + " --password " + l.o.Secret)
		l.adm("--mode account --op bind --tid 1 --user " + l.o.User)
	}
	if l.o.TargetUser != "" {
		l.adm("--mode account --op new --user " + l.o.TargetUser + " --password " + l.o.TargetSecret)
		l.adm("--mode account --op bind --tid 1 --user " + l.o.TargetUser + " --outgoing")
	}
	l.adm("--mode target --op bind --tid 1 -I ALL")
}

// ChangerLUN is the changer's logical unit number.
func (l *Library) ChangerLUN() int { return l.o.Drives + 1 }

// Kill ends the process at once, as a crash would. What it had acknowledged is in the cartridges' files.
func (l *Library) Kill() {
	if l.cmd == nil {
		return
	}
	_ = l.cmd.Process.Kill() // it may have ended by itself
	_ = l.cmd.Wait()
	l.cmd = nil
}

// Options returns how to log in.
func (l *Library) Options() iscsi.Options {
	return iscsi.Options{Portal: l.Portal, Target: Target, Initiator: "iqn.2024-01.test.holdfast:initiator", User: l.o.User, Secret: l.o.Secret, TargetSecret: l.o.TargetSecret}
}

// Dial logs in, and out when the test ends.
func (l *Library) Dial() *iscsi.Session {
	l.t.Helper()
	s, err := iscsi.Dial(context.Background(), l.Options())
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			l.t.Error(err)
		}
	})
	return s
}
