package wireguard

// logKeys writes the secrets of one exchange with p to Config.KeyLog, before the message that they belong to is sent. No lock is
// held.
func (d *Device) logKeys(id *identity, p *peer, ephemeral PrivateKey, psk *PresharedKey) {
	if err := d.keyLog.Write(id.private, p.key, ephemeral, *psk); err != nil {
		d.warn("the key log takes no more keys", "err", err)
	}
}
