import shared
shared.require("worklist")
