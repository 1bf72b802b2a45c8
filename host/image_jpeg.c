#include "image_codec.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#define EXIF_MARKER       (JPEG_APP0 + 1)
#define EXIF_PREFIX       "Exif\0" /* and its terminating zero: 6 bytes */
#define COMMENT_MAX_UNITS 32737    /* what fits a marker of 65533 bytes beside the headers */
#define MAX_SCANS         256      /* each is a pass over the whole image: more is an attack */

/* libjpeg reports through callbacks; errors come back by longjmp. Nothing is ever printed. */
struct reporter {
    struct jpeg_error_mgr base;
    jmp_buf failed;
    char message[JMSG_LENGTH_MAX];
};

static void report_failure(j_common_ptr jpeg)
{
    struct reporter *r = (struct reporter *)jpeg->err;
    r->base.format_message(jpeg, r->message);
    longjmp(r->failed, 1);
}

/* Warnings that mean lost pixels are failures; libjpeg would go on with grey. The others are harmless
 * oddities of writers. */
static void report_warning(j_common_ptr jpeg, int level)
{
    if (level >= 0) return;
    switch (jpeg->err->msg_code) {
    case JWRN_ADOBE_XFORM:
    case JWRN_BOGUS_ICC:
    case JWRN_EXTRANEOUS_DATA:
    case JWRN_JFIF_MAJOR:
    case JWRN_TOO_MUCH_DATA:
        return;
    default:
        report_failure(jpeg);
    }
}

static void limit_scans(j_common_ptr jpeg)
{
    struct reporter *r = (struct reporter *)jpeg->err;
    if (((j_decompress_ptr)jpeg)->input_scan_number <= MAX_SCANS) return;
    snprintf(r->message, sizeof r->message, "more than %d scans", MAX_SCANS);
    longjmp(r->failed, 1);
}

static void reporter_init(struct reporter *r)
{
    jpeg_std_error(&r->base);
    r->base.error_exit = report_failure;
    r->base.emit_message = report_warning;
    r->message[0] = 0;
}

/* One row of CMYK in place to RGB, as Pillow converts it. Adobe stores the inks inverted. */
static void rgb_of_cmyk(uint8_t *row, int width, int inverted)
{
    for (int x = 0; x < width; x++) {
        uint8_t *cmyk = row + 4 * x, invert = inverted ? 255 : 0;
        int white = 255 - (cmyk[3] ^ invert);
        for (int c = 0; c < 3; c++) {
            int t = (cmyk[c] ^ invert) * white + 128;
            row[3 * x + c] = (uint8_t)(white - ((t + (t >> 8)) >> 8)); /* t / 255, rounded */
        }
    }
}

struct decoder {
    struct jpeg_decompress_struct jpeg;
    struct reporter reporter;
    struct jpeg_progress_mgr progress;
    uint8_t *row;
};

static enum klein_status decode(struct decoder *d, const struct image_source *from, struct klein_image *out,
                                int *orientation, struct klein_error *err)
{
    j_decompress_ptr jpeg = &d->jpeg;
    if (setjmp(d->reporter.failed)) {
        int code = d->reporter.base.msg_code;
        if (code == JERR_OUT_OF_MEMORY)
            return fail(err, KLEIN_E_NO_MEMORY, "%s: no memory to decode JPEG", from->name);
        if (code == JWRN_JPEG_EOF || code == JERR_INPUT_EOF || code == JERR_INPUT_EMPTY)
            return fail(err, KLEIN_E_INPUT, "%s: JPEG file is truncated", from->name);
        return fail(err, KLEIN_E_INPUT, "%s: damaged JPEG: %s", from->name, d->reporter.message);
    }
    jpeg_create_decompress(jpeg);
    jpeg->progress = &d->progress;
    jpeg_mem_src(jpeg, from->bytes, from->n);
    jpeg_save_markers(jpeg, EXIF_MARKER, 0xffff);
    jpeg_read_header(jpeg, TRUE);
    for (jpeg_saved_marker_ptr m = jpeg->marker_list; m; m = m->next)
        if (m->data_length > 6 && !memcmp(m->data, EXIF_PREFIX, 6))
            *orientation = exif_orientation(m->data, m->data_length);
    TRY(image_allocate(from, jpeg->image_width, jpeg->image_height, out, err));

    int cmyk = jpeg->num_components == 4;
    jpeg->out_color_space = cmyk ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(jpeg);
    d->row = malloc(4 * (size_t)out->width); /* CMYK comes in four bytes a pixel */
    if (!d->row) return fail(err, KLEIN_E_NO_MEMORY, "%s: no memory to decode JPEG", from->name);
    while (jpeg->output_scanline < jpeg->output_height) {
        uint8_t *to = out->rgb + 3 * (size_t)out->width * jpeg->output_scanline;
        JSAMPROW row = cmyk ? d->row : to;
        jpeg_read_scanlines(jpeg, &row, 1);
        if (!cmyk) continue;
        rgb_of_cmyk(d->row, out->width, jpeg->saw_Adobe_marker);
        memcpy(to, d->row, 3 * (size_t)out->width);
    }
    return KLEIN_OK; /* what follows the last row, a missing end marker included, does not matter */
}

enum klein_status image_jpeg_read(const struct image_source *from, struct klein_image *out, int *orientation,
                                  struct klein_error *err)
{
    struct decoder d = {.progress.progress_monitor = limit_scans};
    reporter_init(&d.reporter);
    d.jpeg.err = &d.reporter.base;
    enum klein_status status = decode(&d, from, out, orientation, err);
    jpeg_destroy_decompress(&d.jpeg);
    free(d.row);
    return status;
}

struct encoder {
    struct jpeg_compress_struct jpeg;
    struct reporter reporter;
    uint8_t *exif, *bytes;
    unsigned long n;
};

static enum klein_status encode(struct encoder *e, const struct klein_image *image, int quality,
                                const char *parameters, struct klein_error *err)
{
    j_compress_ptr jpeg = &e->jpeg;
    if (setjmp(e->reporter.failed)) {
        if (e->reporter.base.msg_code == JERR_OUT_OF_MEMORY)
            return fail(err, KLEIN_E_NO_MEMORY, "no memory to encode JPEG");
        return fail(err, KLEIN_E_OUTPUT, "cannot encode JPEG: %s", e->reporter.message);
    }
    jpeg_create_compress(jpeg);
    jpeg_mem_dest(jpeg, &e->bytes, &e->n);
    jpeg->image_width = (JDIMENSION)image->width;
    jpeg->image_height = (JDIMENSION)image->height;
    jpeg->input_components = 3;
    jpeg->in_color_space = JCS_RGB;
    jpeg_set_defaults(jpeg);
    jpeg_set_quality(jpeg, quality, TRUE);
    jpeg->optimize_coding = TRUE;
    if (quality >= 90)
        jpeg->comp_info[0].h_samp_factor = jpeg->comp_info[0].v_samp_factor = 1; /* full colour resolution */
    jpeg_start_compress(jpeg, TRUE);
    if (parameters) {
        size_t n;
        uint8_t *comment = exif_with_comment(parameters, COMMENT_MAX_UNITS, &n);
        e->exif = comment ? malloc(6 + n) : NULL;
        if (e->exif) memcpy(memcpy(e->exif, EXIF_PREFIX, 6) + 6, comment, n);
        free(comment);
        if (!e->exif) return fail(err, KLEIN_E_NO_MEMORY, "no memory to encode JPEG");
        jpeg_write_marker(jpeg, EXIF_MARKER, e->exif, (unsigned)(6 + n));
    }
    while (jpeg->next_scanline < jpeg->image_height) {
        JSAMPROW row = image->rgb + 3 * (size_t)image->width * jpeg->next_scanline;
        jpeg_write_scanlines(jpeg, &row, 1);
    }
    jpeg_finish_compress(jpeg);
    return KLEIN_OK;
}

enum klein_status image_jpeg_write(const struct klein_image *image, int quality, const char *parameters,
                                   uint8_t **bytes, size_t *n, struct klein_error *err)
{
    struct encoder e = {.n = 0};
    reporter_init(&e.reporter);
    e.jpeg.err = &e.reporter.base;
    enum klein_status status = encode(&e, image, quality, parameters, err);
    jpeg_destroy_compress(&e.jpeg);
    free(e.exif);
    if (status != KLEIN_OK) {
        free(e.bytes);
        return status;
    }
    *bytes = e.bytes;
    *n = e.n;
    return KLEIN_OK;
}
