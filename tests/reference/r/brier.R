# Brier score and cumulative/dynamic AUC under censoring: riskRegression::Score, and the formula written out with survfit.
args <- commandArgs(FALSE); source(file.path(dirname(sub("^--file=", "", grep("^--file=", args, value = TRUE))), "common.R"))
suppressPackageStartupMessages(library(riskRegression))

# Probability of being uncensored, by reversed Kaplan-Meier. Events of a time leave before its censorings: event times
# are moved back by half of the smallest gap.
censoring <- function(time, event) {
  gap <- min(diff(sort(unique(time)))) / 2
  fit <- survfit(Surv(time - gap * event, !event) ~ 1)
  list(at = stepfun(fit$time, c(1, fit$surv)), before = stepfun(fit$time + gap / 2, c(1, fit$surv)))
}
# Graf's score with the weights of events taken just before their time (as Score does) or at it (as Graf writes).
graf <- function(time, event, free, at, g) {
  sapply(seq_along(at), function(k) {
    had <- event & time <= at[k]
    weigh <- function(w) mean(ifelse(had, free[, k]^2 / w, 0) + (time > at[k]) * (1 - free[, k])^2 / g$at(at[k]))
    c(before = weigh(g$before(time)), at = weigh(g$at(time)))
  })
}

data <- load_data()
one <- function(d, unit) {
  time <- ceiling(d$time / unit)  # coarser: events and censorings tie
  event <- d$event
  half <- seq_along(time) %% 2 == 1
  frame <- data.frame(time, event = as.numeric(event), d$x)
  fit <- coxph(Surv(time, event) ~ ., frame[half, ], x = TRUE)
  at <- as.numeric(quantile(time[event], c(.25, .5, .75), type = 1))
  base <- basehaz(fit, centered = FALSE)
  hazard <- stepfun(base$time, c(0, base$hazard))(at)
  free <- exp(-exp(drop(d$x %*% coef(fit))) %*% t(hazard))
  test <- !half
  score <- suppressMessages(Score(lapply(list(cox = 1 - free[test, ]), as.matrix), Surv(time, event) ~ 1, data = frame[test, ], times = at,
                 cens.model = "km", null.model = FALSE, se.fit = FALSE, conf.int = FALSE, metrics = c("brier", "auc")))
  own <- censoring(time[test], event[test])
  train <- censoring(time[half], event[half])
  list(time = time, event = event, test = test, times = at, free = free[test, ],
       score_brier = score$Brier$score$Brier, score_auc = score$AUC$score$AUC,
       own = list(before = graf(time[test], event[test], free[test, ], at, own)["before", ],
                  at = graf(time[test], event[test], free[test, ], at, own)["at", ]),
       train = list(before = graf(time[test], event[test], free[test, ], at, train)["before", ],
                    at = graf(time[test], event[test], free[test, ], at, train)["at", ]))
}
write_fixture("brier", list(
  veteran = one(data$veteran, 30), gbsg = one(data$gbsg, 60), rossi = one(data$rossi, 1), pbc = one(data$pbc, 1)
), packages = c("survival", "riskRegression", "prodlim"))
