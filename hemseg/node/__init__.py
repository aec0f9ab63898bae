"""A DICOM node: CT studies come in by C-STORE, results go back. The extra ``[node]`` brings pynetdicom.

`hemseg.node.peers` says who may call, `hemseg.node.receiver` takes what they send, `hemseg.node.study_queue` keeps it
on the disk, `hemseg.node.service` segments one study at a time, `hemseg.node.sender` returns the results.
"""
