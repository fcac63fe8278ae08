package netem

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/clock"
)

// sink accepts one connection, reads it whole and answers with the hash.
func sink(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				h := sha256.New()
				if _, err := io.Copy(h, c); err == nil {
					_, _ = c.Write(h.Sum(nil))
				}
			}()
		}
	}()
	return ln.Addr().String()
}

func TestLineDelaysAndLimitsWithoutChangingBytes(t *testing.T) {
	const size = 4 << 20
	line := Line{Delay: 40 * time.Millisecond, Rate: 20 << 20}
	p, err := Listen(sink(t), line)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	data := make([]byte, size)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(data)
	start := clock.System.Now()
	c, err := p.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	took := clock.System.Now().Sub(start)
	if want := sha256.Sum256(data); !bytes.Equal(got, want[:]) {
		t.Fatal("other bytes came out")
	}
	if least := 2*line.Delay + 200*time.Millisecond; took < least {
		t.Fatalf("took %v; %v is the least that the line needs", took, least)
	}
}

func TestCutAfterBreaksAtTheByte(t *testing.T) {
	p, err := Listen(sink(t), Line{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.CutAfter(1000)
	c, err := p.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write(make([]byte, 5000))
	if n, err := io.Copy(io.Discard, c); err == nil && n > 0 {
		t.Fatal("the connection lived on")
	}
	if p.Carried() != 1000 {
		t.Fatalf("%d bytes came through", p.Carried())
	}
}
