#include "picture.h"

#include <jpeglib.h>
#include <png.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <stdexcept>

namespace {

using File = std::unique_ptr<FILE, int (*)(FILE*)>;

// 1 to 8, of an EXIF block; 1 where it says nothing.
int orientation(const uint8_t* data, size_t size) {
  if (size < 14 || std::string(data, data + 4) != "Exif") return 1;
  const uint8_t* tiff = data + 6;
  size -= 6;
  const bool little = tiff[0] == 'I';
  auto number = [&](size_t at, int bytes) {
    uint32_t value = 0;
    for (int k = 0; k < bytes; ++k)
      value |= uint32_t(at + k < size ? tiff[at + k] : 0) << 8 * (little ? k : bytes - 1 - k);
    return value;
  };
  const size_t table = number(4, 4), entries = number(table, 2);
  for (size_t entry = 0; entry < entries; ++entry) {
    const size_t at = table + 2 + 12 * entry;
    if (number(at, 2) != 0x0112) continue;
    const int value = number(at + 8, 2);
    return value >= 1 && value <= 8 ? value : 1;
  }
  return 1;
}

Picture upright(Picture stored, int turn) {
  if (turn == 1) return stored;
  Picture out = stored;
  if (turn >= 5) std::swap(out.height, out.width);
  for (int y = 0; y < out.height; ++y)
    for (int x = 0; x < out.width; ++x) {
      int row = turn >= 5 ? x : y, column = turn >= 5 ? y : x;
      if (turn == 3 || turn == 4 || turn == 6 || turn == 7) row = stored.height - 1 - row;
      if (turn == 2 || turn == 3 || turn == 7 || turn == 8) column = stored.width - 1 - column;
      for (int c = 0; c < 3; ++c)
        out.pixels[3 * (size_t(y) * out.width + x) + c] =
            stored.pixels[3 * (size_t(row) * stored.width + column) + c];
    }
  return out;
}

[[noreturn]] void jpeg_error(j_common_ptr jpeg) {
  char text[JMSG_LENGTH_MAX];
  jpeg->err->format_message(jpeg, text);
  throw std::runtime_error(text);
}

void jpeg_warning(j_common_ptr jpeg, int level) {
  if (level < 0) jpeg_error(jpeg);  // data are missing or damaged
}

Picture read_jpeg(FILE* file) {
  jpeg_error_mgr errors;
  jpeg_decompress_struct jpeg;
  jpeg.err = jpeg_std_error(&errors);
  errors.error_exit = jpeg_error;
  errors.emit_message = jpeg_warning;
  jpeg_create_decompress(&jpeg);
  std::unique_ptr<jpeg_decompress_struct, void (*)(j_decompress_ptr)> closing(
      &jpeg, jpeg_destroy_decompress);
  jpeg_stdio_src(&jpeg, file);
  jpeg_save_markers(&jpeg, JPEG_APP0 + 1, 0xFFFF);
  jpeg_read_header(&jpeg, TRUE);
  if (jpeg.num_components == 4) throw std::runtime_error("it is CMYK: convert it to RGB");
  int turn = 1;
  for (jpeg_saved_marker_ptr marker = jpeg.marker_list; marker; marker = marker->next)
    if (turn == 1) turn = orientation(marker->data, marker->data_length);
  jpeg.out_color_space = JCS_RGB;
  jpeg_start_decompress(&jpeg);
  Picture picture{int(jpeg.output_height), int(jpeg.output_width), 3, {}};
  picture.pixels.resize(size_t(picture.height) * picture.width * 3);
  while (jpeg.output_scanline < jpeg.output_height) {
    JSAMPROW row = &picture.pixels[size_t(jpeg.output_scanline) * picture.width * 3];
    jpeg_read_scanlines(&jpeg, &row, 1);
  }
  return upright(std::move(picture), turn);
}

Picture read_png(FILE* file) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  std::unique_ptr<png_image, void (*)(png_image*)> closing(&image, png_image_free);
  if (!png_image_begin_read_from_stdio(&image, file)) throw std::runtime_error(image.message);
  if (image.format & PNG_FORMAT_FLAG_LINEAR)
    throw std::runtime_error("it has more than 8 bit a channel: convert it to 8 bit");
  image.format = PNG_FORMAT_RGBA;  // without blending: what is transparent is read as opaque
  std::vector<uint8_t> rgba(PNG_IMAGE_SIZE(image));
  if (!png_image_finish_read(&image, nullptr, rgba.data(), 0, nullptr))
    throw std::runtime_error(image.message);
  Picture picture{int(image.height), int(image.width), 3, {}};
  picture.pixels.reserve(rgba.size() / 4 * 3);
  for (size_t k = 0; k < rgba.size(); ++k)
    if (k % 4 < 3) picture.pixels.push_back(rgba[k]);
  return picture;
}

// Weights of each new pixel over the old ones, in parts of 2^22, and the first of these.
struct Weights {
  std::vector<int> first;
  std::vector<std::vector<int32_t>> values;

  Weights(int before, int after) {
    const double scale = double(before) / after, reach = std::max(scale, 1.0);
    for (int k = 0; k < after; ++k) {
      const double center = (k + 0.5) * scale;
      const int start = std::max(int(center - reach + 0.5), 0);
      const int end = std::min(int(center + reach + 0.5), before);
      std::vector<double> weights;
      double sum = 0;
      for (int x = start; x < end; ++x) {
        const double distance = std::abs((x - center + 0.5) * (1 / reach));
        weights.push_back(std::max(1 - distance, 0.0));
        sum += weights.back();
      }
      first.push_back(start);
      values.emplace_back();
      for (double weight : weights)
        values.back().push_back(int32_t(0.5 + weight / sum * (1 << 22)));
    }
  }
};

uint8_t rounded(int64_t sum) {
  return uint8_t(std::clamp<int64_t>((sum + (1 << 21)) >> 22, 0, 255));
}

}  // namespace

Picture read_picture(const std::string& path) {
  try {
    File file(std::fopen(path.c_str(), "rb"), std::fclose);
    if (!file) throw std::runtime_error("there is no such file");
    const int first = std::fgetc(file.get());
    std::rewind(file.get());
    if (first == 0xFF) return read_jpeg(file.get());
    if (first == 0x89) return read_png(file.get());
    throw std::runtime_error("it is neither JPEG nor PNG");
  } catch (const std::exception& error) {
    throw std::runtime_error(path + " cannot be read as a picture: " + error.what());
  }
}

Picture to_grey(const Picture& rgb) {
  Picture out{rgb.height, rgb.width, 1, {}};
  for (size_t k = 0; k < rgb.pixels.size(); k += 3)
    out.pixels.push_back((19595 * rgb.pixels[k] + 38470 * rgb.pixels[k + 1] +
                          7471 * rgb.pixels[k + 2] + 0x8000) >> 16);
  return out;
}

Picture resize(const Picture& picture, int height, int width) {
  const int n = picture.channels;
  const Weights columns(picture.width, width), rows(picture.height, height);
  Picture narrow{picture.height, width, n, {}}, out{height, width, n, {}};
  narrow.pixels.resize(size_t(picture.height) * width * n);
  out.pixels.resize(size_t(height) * width * n);
  for (int y = 0; y < picture.height; ++y)
    for (int x = 0; x < width; ++x)
      for (int c = 0; c < n; ++c) {
        int64_t sum = 0;
        for (size_t k = 0; k < columns.values[x].size(); ++k)
          sum += int64_t(columns.values[x][k]) *
                 picture.pixels[(size_t(y) * picture.width + columns.first[x] + k) * n + c];
        narrow.pixels[(size_t(y) * width + x) * n + c] = rounded(sum);
      }
  const size_t line = size_t(width) * n;
  for (int y = 0; y < height; ++y)
    for (size_t x = 0; x < line; ++x) {
      int64_t sum = 0;
      for (size_t k = 0; k < rows.values[y].size(); ++k)
        sum += int64_t(rows.values[y][k]) * narrow.pixels[(rows.first[y] + k) * line + x];
      out.pixels[y * line + x] = rounded(sum);
    }
  return out;
}

void write_ids(const std::string& path, const std::vector<int32_t>& ids, int height, int width) {
  std::vector<uint8_t> colours;
  colours.reserve(3 * ids.size());
  for (int32_t id : ids)
    for (int shift : {0, 8, 16}) colours.push_back(id >> shift & 255);
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.height = height;
  image.width = width;
  image.format = PNG_FORMAT_RGB;
  if (!png_image_write_to_file(&image, path.c_str(), 0, colours.data(), 0, nullptr))
    throw std::runtime_error(path + " cannot be written: " + image.message);
}
