package s3store

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"path"

	"github.com/minio/minio-go/v7"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

const (
	spillDir   = "s3-spill"
	spillAbove = 8 << 20
	// crcMeta carries the sum as the object's own metadata: every server gives it back on HEAD.
	crcMeta   = "Holdfast-Crc32c"
	crcHeader = "X-Amz-Checksum-Crc32c"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func contentRange(off, n, size int64) string {
	return fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, size)
}

// clearSpill removes what a dead process left.
func (s *Store) clearSpill() error {
	if s.c.Spill == nil {
		return nil
	}
	if err := s.c.Spill.MkdirAll(spillDir); err != nil {
		return fsys.Classify("make spill folder", err)
	}
	names, err := s.c.Spill.List(spillDir)
	if err != nil {
		return fsys.Classify("clear spill folder", err)
	}
	for _, n := range names {
		if err := s.c.Spill.Remove(path.Join(spillDir, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fsys.Classify("clear spill folder", err)
		}
	}
	return nil
}

// Create implements blob.Store. Nothing is sent before Commit.
func (s *Store) Create(ctx context.Context, name string) (blob.Object, error) {
	if err := check(ctx, "create", name); err != nil {
		return nil, err
	}
	return &object{s: s, ctx: ctx, name: name, sum: crc32.New(castagnoli)}, nil
}

// object buffers what is to be sent. It keeps the context of Create for Commit.
type object struct {
	s    *Store
	ctx  context.Context
	name string
	buf  bytes.Buffer // everything, until it is above spillAbove and there is a place to spill to
	file fsys.File    // then everything
	temp string
	size int64
	sum  hash.Hash32
	err  error
	done bool
}

func (o *object) Write(p []byte) (int, error) {
	op := "write " + o.name
	if o.done {
		return 0, holdfast.Errorf(holdfast.Invalid, op, "the object is committed or aborted")
	}
	if o.err != nil {
		return 0, o.err
	}
	if o.size+int64(len(p)) > o.s.c.MaxObject {
		o.err = holdfast.Errorf(holdfast.Invalid, op, "the object has more than the %d bytes that this bucket takes", o.s.c.MaxObject)
		return 0, o.err
	}
	if o.file == nil && o.s.c.Spill != nil && o.size+int64(len(p)) > spillAbove {
		if o.err = fsys.Classify(op, o.spill()); o.err != nil {
			return 0, o.err
		}
	}
	if o.file != nil {
		if _, err := o.file.Write(p); err != nil {
			o.err = fsys.Classify(op, err)
			return 0, o.err
		}
	} else {
		o.buf.Write(p)
	}
	o.size += int64(len(p))
	_, _ = o.sum.Write(p) // never fails
	return len(p), nil
}

// spill moves what is buffered into a file. It is never synced: after a crash it is rubbish.
func (o *object) spill() error {
	o.temp = fmt.Sprintf("%s/%d", spillDir, o.s.spilled.Add(1))
	f, err := o.s.c.Spill.Create(o.temp)
	if err != nil {
		return err
	}
	o.file = f
	_, err = f.Write(o.buf.Bytes())
	o.buf = bytes.Buffer{}
	return err
}

// body returns the bytes from the beginning.
func (o *object) body() io.Reader {
	if o.file != nil {
		return io.NewSectionReader(o.file, 0, o.size)
	}
	return bytes.NewReader(o.buf.Bytes())
}

func (o *object) Abort() {
	if o.done {
		return
	}
	o.done = true
	o.release()
}

func (o *object) release() {
	o.buf = bytes.Buffer{}
	if o.file != nil {
		_ = o.file.Close() // rubbish now
		_ = o.s.c.Spill.Remove(o.temp)
		o.file = nil
	}
}

// Commit sends the object. Where an attempt may have stored it although its answer did not come, the server is asked first.
func (o *object) Commit() error {
	op := "store " + o.name
	if o.done {
		return holdfast.Errorf(holdfast.Invalid, op, "the object is committed or aborted")
	}
	o.done = true
	defer o.release()
	if o.err != nil {
		return o.err
	}
	if err := blob.Cancelled(o.ctx, op); err != nil {
		return err
	}
	sent := false
	err := o.s.c.Retry.Do(o.ctx, o.s.c.Clock, func() error {
		if sent {
			if is, err := o.stored(op); err != nil || is {
				return err
			}
		}
		sent = true
		return o.put(op)
	})
	if err != nil && holdfast.KindOf(err) == holdfast.Transient && o.ctx.Err() == nil {
		if is, cerr := o.stored(op); cerr == nil && is { // the last answer was lost, not the bytes
			return nil
		}
	}
	return err
}

// stored asks whether the server has exactly these bytes.
func (o *object) stored(op string) (bool, error) {
	info, err := o.s.head(o.ctx, op, o.name)
	if errors.Is(err, holdfast.NotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return info.Size == o.size && info.UserMetadata[crcMeta] == o.crc(), nil
}

// crc returns the sum as S3 writes it.
func (o *object) crc() string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, o.sum.Sum32()))
}

// put makes one attempt.
func (o *object) put(op string) error {
	sum := ""
	if o.s.md5.Load() {
		h := md5.New()
		if _, err := io.Copy(h, o.body()); err != nil {
			return fsys.Classify(op, err)
		}
		sum = base64.StdEncoding.EncodeToString(h.Sum(nil))
	}
	ctx, done := o.s.limit(o.ctx, o.size)
	defer done()
	info, err := o.s.core.PutObject(ctx, o.s.c.Bucket, o.s.key(o.name), o.body(), o.size, sum, "", o.s.putOptions(o.crc()))
	if err != nil {
		return o.s.classify(op, err)
	}
	switch {
	case info.ChecksumCRC32C == o.crc():
	case info.ChecksumCRC32C != "":
		return holdfast.Errorf(holdfast.Transient, op, "the server stored other bytes than were sent: CRC-32C %s, not %s", info.ChecksumCRC32C, o.crc())
	case sum == "": // not confirmed: from now on with a sum that every server checks, and this one again
		o.s.md5.Store(true)
		return o.put(op)
	}
	return nil
}

func (s *Store) putOptions(crc string) minio.PutObjectOptions {
	return minio.PutObjectOptions{
		UserMetadata:         map[string]string{crcHeader: crc, crcMeta: crc},
		ContentType:          "application/octet-stream",
		StorageClass:         s.c.StorageClass,
		DisableContentSha256: true, // over TLS; the CRC covers the bytes
	}
}
