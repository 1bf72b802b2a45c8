#include "device.h"

#include <stdio.h>
#include <string.h>

/* The line about the GPUs that are passed over, as it grows. */
struct passed {
    char *text; /* KLEIN_MESSAGE_MAX bytes */
    size_t used;
    int first, next;                /* the latest: [first, next), */
    char reason[KLEIN_MESSAGE_MAX]; /* all for that reason */
};

/* The latest to the line, cut where it would take the room of others: of `cards`, each may need some. */
static void write_down(struct passed *p, int cards)
{
    static const char cut[] = "...";
    if (p->first == p->next) return;
    const size_t room = (KLEIN_MESSAGE_MAX - p->used) / (size_t)(cards - p->next + 1);
    char *at = p->text + p->used, which[48];
    if (p->next - p->first > 1)
        snprintf(which, sizeof which, "s %d to %d are", p->first, p->next - 1);
    else
        snprintf(which, sizeof which, " %d is", p->first);
    const size_t n =
        (size_t)snprintf(at, room, "%sGPU%s not used: %s", p->used ? "; " : "", which, p->reason);
    if (n >= room) memcpy(at + room - sizeof cut, cut, sizeof cut);
    p->used += n < room ? n : room - 1;
    p->first = p->next;
}

static void pass_over(struct passed *p, int cards, char *reason)
{
    char *advice = strstr(reason, "; use --device cpu"); /* which is not for the user to do here */
    if (advice) *advice = 0;
    if (strcmp(p->reason, reason)) write_down(p, cards);
    snprintf(p->reason, sizeof p->reason, "%s", reason);
    p->next++;
}

static enum klein_status open_card(int number, const struct device_options *options, device_check *check,
                                   void *user, struct device **out, struct klein_error *why)
{
    TRY(device_open(device_label("cuda", number).text, options, out, why));
    const enum klein_status status = check ? check(user, *out, why) : KLEIN_OK;
    if (status != KLEIN_OK) device_close(*out);
    return status;
}

enum klein_status device_open_best(const struct device_options *options, device_check *check, void *user,
                                   struct device **out, char *passed_over, struct klein_error *err)
{
    struct passed passed = {.text = passed_over};
    int cards = 1;
    *passed_over = 0;
    for (int i = 0; i < cards; i++) {
        struct klein_error why = {0};
        if (open_card(i, options, check, user, out, &why) == KLEIN_OK) {
            write_down(&passed, cards);
            return KLEIN_OK;
        }
        if (i == 0) cards = device_count("cuda"); /* not before the first one failed: asking takes time */
        if (!cards && why.status == KLEIN_E_NO_DEVICE) break; /* neither driver nor card */
        if (!cards) cards = 1;                                /* a driver that fails does not say */
        pass_over(&passed, cards, why.message);
    }
    write_down(&passed, cards);
    return device_open("cpu", options, out, err);
}
