/* judge.h: what does a picture of the demo checkpoint's small world show? A pixel classifier without a model: it knows the
 * world's palettes and outlines, from tests/nano/judge.json and outlines.json. The method is that of
 * tools/nano/judge.py, but with outlines for each colour.
 *
 *   place     nearest of six pairs of colours: means of the top and the bottom 12 rows
 *   object    the largest connected piece of pixels whose colour the empty place never shows
 *   colour    nearest of seven to the median of the object's middle
 *   kind      nearest of the six outlines of that colour and place: the square round the object in 16 x 16 cells
 *   position  the third of the picture that holds the middle of the object's box
 *   size      the longer side of the box against a threshold of the kind */
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
