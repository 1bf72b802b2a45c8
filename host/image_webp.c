#include "image_codec.h"

#include <stdlib.h>
#include <string.h>
#include <webp/decode.h>
#include <webp/encode.h>
#include <webp/mux.h>

static enum klein_status damaged(const struct image_source *from, VP8StatusCode code, struct klein_error *err)
{
    static const char *const reasons[] = {
        [VP8_STATUS_INVALID_PARAM] = "invalid header",
        [VP8_STATUS_BITSTREAM_ERROR] = "bitstream error",
        [VP8_STATUS_UNSUPPORTED_FEATURE] = "unsupported feature",
        [VP8_STATUS_NOT_ENOUGH_DATA] = "file is truncated",
        [VP8_STATUS_SUSPENDED] = "file is truncated",
    };
    if (code == VP8_STATUS_OUT_OF_MEMORY)
        return fail(err, KLEIN_E_NO_MEMORY, "%s: no memory to decode WebP", from->name);
    const char *reason = (unsigned)code < sizeof reasons / sizeof *reasons ? reasons[code] : NULL;
    return fail(err, KLEIN_E_INPUT, "%s: damaged WebP: %s", from->name,
                reason ? reason : "cannot be decoded");
}

/* Decodes one frame into its place on the canvas. */
static VP8StatusCode decode_frame(WebPData frame, int left, int top, const struct klein_image *canvas)
{
    WebPDecoderConfig config;
    if (!WebPInitDecoderConfig(&config)) return VP8_STATUS_INVALID_PARAM;
    VP8StatusCode code = WebPGetFeatures(frame.bytes, frame.size, &config.input);
    if (code != VP8_STATUS_OK) return code;
    if (left < 0 || top < 0 || config.input.width > canvas->width - left ||
        config.input.height > canvas->height - top)
        return VP8_STATUS_BITSTREAM_ERROR;
    size_t stride = 3 * (size_t)canvas->width, start = (size_t)top * stride + 3 * (size_t)left;
    config.output.colorspace = MODE_RGB;
    config.output.is_external_memory = 1;
    config.output.u.RGBA.rgba = canvas->rgb + start;
    config.output.u.RGBA.stride = (int)stride;
    config.output.u.RGBA.size = stride * (size_t)canvas->height - start;
    code = WebPDecode(frame.bytes, frame.size, &config);
    WebPFreeDecBuffer(&config.output);
    return code;
}

/* The first frame, on black where it leaves the canvas uncovered. */
static enum klein_status decode_animation(const WebPMux *mux, const struct image_source *from,
                                          const struct klein_image *out, struct klein_error *err)
{
    WebPMuxFrameInfo frame;
    if (!mux || WebPMuxGetFrame(mux, 1, &frame) != WEBP_MUX_OK)
        return fail(err, KLEIN_E_INPUT, "%s: damaged WebP: the animation has no readable first frame",
                    from->name);
    memset(out->rgb, 0, 3 * (size_t)out->width * (size_t)out->height);
    VP8StatusCode code = decode_frame(frame.bitstream, frame.x_offset, frame.y_offset, out);
    WebPDataClear(&frame.bitstream);
    return code == VP8_STATUS_OK ? KLEIN_OK : damaged(from, code, err);
}

enum klein_status image_webp_read(const struct image_source *from, struct klein_image *out, int *orientation,
                                  struct klein_error *err)
{
    WebPBitstreamFeatures features;
    WebPData file = {from->bytes, from->n}, exif;
    VP8StatusCode code = WebPGetFeatures(from->bytes, from->n, &features);
    if (code != VP8_STATUS_OK) return damaged(from, code, err);
    TRY(image_allocate(from, features.width, features.height, out, err));

    WebPMux *mux = WebPMuxCreate(&file, 0);
    if (mux && WebPMuxGetChunk(mux, "EXIF", &exif) == WEBP_MUX_OK)
        *orientation = exif_orientation(exif.bytes, exif.size);
    enum klein_status status = KLEIN_OK;
    if (features.has_animation)
        status = decode_animation(mux, from, out, err);
    else if ((code = decode_frame(file, 0, 0, out)) != VP8_STATUS_OK)
        status = damaged(from, code, err);
    WebPMuxDelete(mux); /* NULL allowed */
    return status;
}

static enum klein_status no_memory(struct klein_error *err)
{
    return fail(err, KLEIN_E_NO_MEMORY, "no memory to encode WebP");
}

static enum klein_status encode(WebPPicture *picture, const struct klein_image *image, int quality,
                                struct klein_error *err)
{
    WebPConfig config;
    int ok = WebPConfigPreset(&config, WEBP_PRESET_DEFAULT, (float)quality);
    /* level 1 of 9: 0.4 s for 1024x1024; higher ones take up to twice that and gain 1 % */
    if (ok && quality == 100) ok = WebPConfigLosslessPreset(&config, 1);
    if (!ok) return fail(err, KLEIN_E_INTERNAL, "libwebp is not the version this program was built for");
    picture->use_argb = quality == 100;
    picture->width = image->width;
    picture->height = image->height;
    if (!WebPPictureImportRGB(picture, image->rgb, 3 * image->width)) return no_memory(err);
    if (WebPEncode(&config, picture)) return KLEIN_OK;
    if (picture->error_code == VP8_ENC_ERROR_OUT_OF_MEMORY ||
        picture->error_code == VP8_ENC_ERROR_BITSTREAM_OUT_OF_MEMORY)
        return no_memory(err);
    return fail(err, KLEIN_E_OUTPUT, "cannot encode WebP: libwebp error %d", picture->error_code);
}

/* Puts the bitstream and its metadata in one file. */
static enum klein_status assemble(WebPMux *mux, const WebPMemoryWriter *encoded, const char *parameters,
                                  WebPData *file, struct klein_error *err)
{
    WebPData bitstream = {encoded->mem, encoded->size};
    WebPMuxError code = mux ? WebPMuxSetImage(mux, &bitstream, 0) : WEBP_MUX_MEMORY_ERROR;
    if (code == WEBP_MUX_OK && parameters) {
        WebPData exif;
        exif.bytes = exif_with_comment(parameters, SIZE_MAX, &exif.size);
        code = exif.bytes ? WebPMuxSetChunk(mux, "EXIF", &exif, 1) : WEBP_MUX_MEMORY_ERROR;
        free((void *)exif.bytes);
    }
    if (code == WEBP_MUX_OK) code = WebPMuxAssemble(mux, file);
    if (code == WEBP_MUX_MEMORY_ERROR) return no_memory(err);
    return code == WEBP_MUX_OK ? KLEIN_OK
                               : fail(err, KLEIN_E_OUTPUT, "cannot encode WebP: libwebpmux error %d", code);
}

enum klein_status image_webp_write(const struct klein_image *image, int quality, const char *parameters,
                                   uint8_t **bytes, size_t *n, struct klein_error *err)
{
    WebPPicture picture;
    WebPMemoryWriter encoded;
    WebPData file = {NULL, 0};
    if (image->width > WEBP_MAX_DIMENSION || image->height > WEBP_MAX_DIMENSION)
        return fail(err, KLEIN_E_OUTPUT, "WebP holds at most %d pixels a side, not %dx%d: use PNG",
                    WEBP_MAX_DIMENSION, image->width, image->height);
    if (!WebPPictureInit(&picture))
        return fail(err, KLEIN_E_INTERNAL, "libwebp is not the version this program was built for");
    WebPMemoryWriterInit(&encoded);
    picture.writer = WebPMemoryWrite;
    picture.custom_ptr = &encoded;
    enum klein_status status = encode(&picture, image, quality, err);
    WebPPictureFree(&picture);

    WebPMux *mux = WebPMuxNew();
    if (status == KLEIN_OK) status = assemble(mux, &encoded, parameters, &file, err);
    WebPMuxDelete(mux);
    WebPMemoryWriterClear(&encoded);
    if (status != KLEIN_OK) return status;

    *bytes = malloc(file.size); /* libwebp's memory is freed by its own function, ours by free */
    *n = file.size;
    if (*bytes) memcpy(*bytes, file.bytes, file.size);
    WebPDataClear(&file);
    return *bytes ? KLEIN_OK : no_memory(err);
}
