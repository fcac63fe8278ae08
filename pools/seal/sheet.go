package seal

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// sheetText is the page that an admin prints. It must do without Holdfast running, and for a reader who has never seen it.
const sheetText = `HOLDFAST RECOVERY SHEET
=======================
Keep this page where a thief of the backup server does not find it, and where you find it when the server is gone.
Whoever has it and the pool's disk can read every backup in the pool. Without it, or the pool's key file or passphrase, nobody can.

    pool        %s
    pool id     %s
    printed     %s
    opens with  this page; its key is %s

Recovery key
------------
%s
The letters I, L, O and U do not occur. Each line is checked by itself: a mistyped line is named.

To restore with this page
-------------------------
1. Install Holdfast on any Linux machine and start holdfastd.
2. Attach the pool's disk; its folder holds the file HOLDFAST and the folder keys.
3. Type the five lines of the key into a file, say recovery.key, and protect it: chmod 600 recovery.key
4. holdfast pool import %s --kind dedup --path DIR --encrypt --key-file /path/to/recovery.key
5. holdfast catalog rebuild; holdfast set list; holdfast restore SET ...
6. Afterwards give the pool a new key file: holdfast pool key rotate NAME --new-key-file FILE
   and print a new sheet: holdfast pool key sheet NAME --new

This page stays valid when data keys are rotated. It is worthless after 'pool key sheet --new'.
`

// Sheet returns the recovery sheet of a pool as text to be printed. It contains the recovery key.
func (r *Ring) Sheet(name string, now time.Time) ([]byte, error) {
	k, ok := r.Recovery()
	if !ok {
		return nil, holdfast.Errorf(holdfast.NotExist, "print recovery sheet", "the pool has no recovery key").Advise("make one: holdfast pool key sheet NAME --new")
	}
	var lines strings.Builder
	for l := range bytes.Lines(k.Armour()) {
		lines.WriteString("    ")
		lines.Write(l)
	}
	return fmt.Appendf(nil, sheetText, name, r.pool, now.UTC().Format("2006-01-02 15:04 UTC"), k.Fingerprint(), lines.String(), shellWord(name)), nil
}

// shellWord quotes a name for the command line on the sheet.
func shellWord(s string) string {
	for _, r := range s {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.", r) {
			return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
		}
	}
	return s
}
