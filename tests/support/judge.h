/* judge.h: what does a picture of the demo checkpoint's small world show? A pixel classifier without a model: it knows the
 * world's palettes and outlines, from tests/nano/judge.json (tools/nano/judge.py) and outlines.png (tests/nano/make.py).
 *
 *   place       nearest of six pairs of colours: means of the top and the bottom 12 rows
 *   object      the largest connected piece of pixels whose colour the empty place never shows
 *   colour      nearest of seven to the median of the object's middle
 *   kind, size  nearest of the twelve outlines of that colour and place
 *   position    the third of the picture that holds the middle of the object's box */
#ifndef KLEIN_TEST_JUDGE_H
#define KLEIN_TEST_JUDGE_H

#include "../../engine/klein.h"

#include <jansson.h>

enum attribute { COLOUR, KIND, PLACE, POSITION, SIZE, ATTRIBUTES };
extern const char *const attribute_names[ATTRIBUTES];

/* Index of the value of each attribute; NOTHING for all but the place where there is no object. */
#define NOTHING (-1)
struct shown {
    int value[ATTRIBUTES];
    int box[4]; /* of the object, as found: left, top, right, bottom (exclusive); zeros for none */
};

struct judge;
struct judge *judge_open(void); /* fails the test if the tables are not as expected */
void judge_close(struct judge *j);

struct shown judge_see(const struct judge *j, const struct klein_image *picture);

/* {"place": "sand", "kind": "ball", "colour": "blue", "size": "small", "position": "left"}; nulls for nothing. */
struct shown shown_of(const json_t *expected);
const char *shown_value(enum attribute a, int value); /* "blue", "nothing" */

#endif
